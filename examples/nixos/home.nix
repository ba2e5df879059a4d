# SPDX-License-Identifier: Apache-2.0

# For one user's rootless podman, with Home Manager: import the flake's
# homeManagerModules.default beside this file.
{
  virtualisation.nix-closure = {
    enable = true;
    podman.enable = true;

    # systemctl --user status nix-closure-canary
    canary.enable = true;
  };
}
