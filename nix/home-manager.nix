# SPDX-License-Identifier: Apache-2.0

# The Home Manager module, for a user's rootless podman. It has in force what
# `nix-closure install podman` would write for that user. /etc/nix-closure/config.toml and
# /etc/cdi are root's: the NixOS module has options for them.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;

  cfg = config.virtualisation.nix-closure;
  toml = pkgs.formats.toml { };

  hooks = "nix-closure/hooks.d";
  hookFiles = lib.genAttrs [
    "nix-closure-createRuntime.json"
    "nix-closure-poststop.json"
  ] (name: "${cfg.package}/share/containers/oci/hooks.d/${name}");
in

{
  options.virtualisation.nix-closure = {
    enable = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to install nix-closure for this user. Enable it for podman too.";
    };

    package = mkOption {
      type = types.package;
      default = pkgs.nix-closure or (pkgs.callPackage ./package.nix { });
      defaultText = lib.literalExpression "pkgs.nix-closure, if there is an overlay with it";
      description = "The package with the programs and the hook files.";
    };

    podman = {
      enable = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether the user's podman gets nix-closure's hook files.";
      };
      hooksDirs = mkOption {
        type = types.listOf types.str;
        default = [
          "/usr/share/containers/oci/hooks.d"
          "/etc/containers/oci/hooks.d"
        ];
        description = ''
          The other directories in which podman looks for hook files. The user's setting
          replaces the system's, so this list repeats the system's.
        '';
      };
      setAsDefault = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether the wrapper `nix-closure-runtime` is podman's runtime.";
      };
    };

    canary = {
      enable = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether to run podman's canary by a timer of the user. The canary asks for a closure
          that cannot exist. The service nix-closure-canary fails if podman starts it, or if
          podman does not refuse it for that reason.
        '';
      };
      interval = mkOption {
        type = types.str;
        default = "1h";
        description = "The time between two canaries, in the form of systemd.time(7).";
      };
    };
  };

  config = mkIf cfg.enable (
    lib.mkMerge [
      {
        assertions = [
          {
            assertion = cfg.podman.setAsDefault -> cfg.podman.enable;
            message = "virtualisation.nix-closure.podman.setAsDefault needs virtualisation.nix-closure.podman.enable";
          }
          {
            assertion = cfg.canary.enable -> cfg.podman.enable;
            message = "virtualisation.nix-closure.canary.enable needs virtualisation.nix-closure.podman.enable";
          }
        ];
        home.packages = [ cfg.package ];
      }

      (mkIf cfg.podman.enable {
        xdg.dataFile = lib.mapAttrs' (
          name: source: lib.nameValuePair "${hooks}/${name}" { inherit source; }
        ) hookFiles;
        xdg.configFile."containers/containers.conf.d/99-nix-closure.conf".source =
          toml.generate "99-nix-closure.conf"
            {
              engine = {
                hooks_dir = cfg.podman.hooksDirs ++ [ "${config.xdg.dataHome}/${hooks}" ];
              }
              // lib.optionalAttrs cfg.podman.setAsDefault {
                # podman remembers the path for the life of a container.
                runtime = "${config.home.profileDirectory}/bin/nix-closure-runtime";
              };
            };
      })

      (mkIf cfg.canary.enable {
        systemd.user.services.nix-closure-canary = {
          Unit.Description = "nix-closure: podman must refuse a closure that cannot exist";
          Service = {
            Type = "oneshot";
            ExecStart = "${import ./canary.nix {
              inherit lib pkgs;
              inherit (cfg) package;
              engines = [ "podman" ];
            }}";
          };
        };
        systemd.user.timers.nix-closure-canary = {
          Unit.Description = "nix-closure: the canary, every ${cfg.canary.interval}";
          Timer = {
            OnStartupSec = "2min";
            OnUnitActiveSec = cfg.canary.interval;
            RandomizedDelaySec = "30s";
          };
          Install.WantedBy = [ "timers.target" ];
        };
      })
    ]
  );
}
