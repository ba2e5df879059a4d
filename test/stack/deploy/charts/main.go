// SPDX-License-Identifier: Apache-2.0

// Does with a chart what `helm lint --strict` and `helm template` do, and with a directory
// what `kubectl kustomize` does, by their own packages:
//
//	charts lint CHART [NAME=VALUE...]
//	charts template CHART [NAME=VALUE...]   to standard output, as release nix-closure in
//	                                        the namespace nix-closure
//	charts write CHART DIRECTORY            the same, into the files of the directory's base
//	                                        and components
//	charts kustomize DIRECTORY              to standard output
package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// name is the release's name and its namespace.
const name = "nix-closure"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: charts lint|template|write|kustomize DIRECTORY, and more")
	}
	if len(args) == 3 && args[0] == "write" {
		return write(args[1], args[2])
	}
	values := map[string]any{}
	for _, v := range args[2:] {
		if err := strvals.ParseInto(v, values); err != nil {
			return err
		}
	}
	var text string
	var err error
	switch args[0] {
	case "lint":
		err = lintChart(args[1], values)
	case "template":
		text, err = template(args[1], values)
	case "kustomize":
		text, err = kustomize(args[1])
	default:
		err = fmt.Errorf("%s: not a command", args[0])
	}
	if err == nil {
		_, err = fmt.Print(text)
	}
	return err
}

// lintChart fails for a warning too.
func lintChart(dir string, values map[string]any) error {
	var all []error
	for _, m := range lint.RunAll(dir, values, name).Messages {
		if m.Severity >= support.WarningSev {
			all = append(all, m)
		}
	}
	return errors.Join(all...)
}

// template returns the manifests of all templates.
func template(dir string, values map[string]any) (string, error) {
	files, err := render(dir, values)
	var text strings.Builder
	for _, file := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&text, "---\n# Source: %s\n%s", file, files[file])
	}
	return text.String(), err
}

// write writes the manifests of each template into a file of its name, below a directory:
// base has those that are on by default.
func write(dir, to string) error {
	base, err := render(dir, nil)
	if err != nil {
		return err
	}
	all, err := render(dir, map[string]any{"devicePlugin": map[string]any{"enabled": true}})
	for file, text := range all {
		name, in := filepath.Base(file), "base"
		if base[file] == "" {
			in = "components/device-plugin"
		}
		text = fmt.Sprintf("# Written by make manifests: change chart/templates/%s.\n%s", name, text)
		err = errors.Join(err, os.WriteFile(filepath.Join(to, in, name), []byte(text), 0o644))
	}
	return err
}

// render returns the manifests of each template that has some.
func render(dir string, values map[string]any) (map[string]string, error) {
	chart, err := loader.Load(dir)
	if err != nil {
		return nil, err
	}
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: name, Namespace: name, Revision: 1,
		IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(chart, all)
	for file, text := range files {
		if text = strings.TrimSpace(text); text == "" || filepath.Ext(file) != ".yaml" {
			delete(files, file)
			continue
		}
		files[file] = text + "\n"
	}
	return files, err
}

func kustomize(dir string) (string, error) {
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return "", err
	}
	text, err := resources.AsYaml()
	return string(text), err
}
