# SPDX-License-Identifier: Apache-2.0

# podman with closures: by annotation, for what `allow` names, and by device.
#
#   podman run --annotation nix-closure/roots=/nix/store/…-hello-2.12 IMAGE /nix/store/…-hello-2.12/bin/hello
#   podman run --device nix-closure/closure=hello IMAGE /nix/store/…-hello-2.12/bin/hello
{ pkgs, ... }:

{
  virtualisation.podman.enable = true;

  virtualisation.nix-closure = {
    enable = true;

    podman.enable = true;

    # systemctl status nix-closure-canary
    canary.enable = true;

    # The keys of /etc/nix-closure/config.toml.
    settings.writable-size = "512M";

    # Without a rule, a container may ask for any valid store path.
    allow = [ { roots = [ "/nix/var/nix/gcroots/containers/*" ]; } ];

    cdi.closures.hello.roots = [ pkgs.hello ];
  };
}
