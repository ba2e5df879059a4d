{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "nix-closure.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* The fields that every container of this image has. */}}
{{- define "nix-closure.container" -}}
image: {{ include "nix-closure.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end -}}

{{/*
The drop-in directory of the node's containerd; empty: containerd's configuration is not
written. k3s and RKE2 read *.toml there if `imports` in config.toml, which they write beside
that directory, names it. Releases before 2026 need a template (config-v3.toml.tmpl) with
the same lines.
*/}}
{{- define "nix-closure.dropInDir" -}}
{{- if .Values.containerd.dropInDir -}}
{{ .Values.containerd.dropInDir }}
{{- else if .Values.distribution -}}
{{ get (dict
  "k3s" "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d"
  "rke2" "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d"
  "k0s" "/etc/k0s/containerd.d"
) .Values.distribution }}
{{- end -}}
{{- end -}}

{{- define "nix-closure.systemdCgroup" -}}
{{- if kindIs "bool" .Values.containerd.systemdCgroup -}}
{{ .Values.containerd.systemdCgroup }}
{{- else -}}
{{ ne .Values.distribution "k0s" }}
{{- end -}}
{{- end -}}

{{- define "nix-closure.kubeletDir" -}}
{{- if .Values.kubelet.rootDir -}}
{{ .Values.kubelet.rootDir }}
{{- else -}}
{{ ternary "/var/lib/k0s/kubelet" "/var/lib/kubelet" (eq .Values.distribution "k0s") }}
{{- end -}}
{{- end -}}
