# SPDX-License-Identifier: Apache-2.0

# A stand-in for the options of NixOS that nix/nixos.nix defines, and for what NixOS makes
# of them: system.build.etc is /etc, with the files that NixOS gives to Docker and
# containerd by their command lines. Of a unit of a package, NixOS takes the file, and
# makes the links that wantedBy asks for.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };
  anything = types.attrsOf types.anything;
  flag = mkOption {
    type = types.bool;
    default = false;
  };
  settings =
    type:
    mkOption {
      inherit type;
      default = { };
    };

  unit = settings (
    types.attrsOf (
      types.submodule {
        options = {
          description = mkOption {
            type = types.str;
            default = "";
          };
          wantedBy = settings' (types.listOf types.str);
          after = settings' (types.listOf types.str);
          serviceConfig = settings anything;
          timerConfig = settings anything;
        };
      }
    )
  );
  units =
    suffix: section: of:
    lib.mapAttrs' (
      name: unit:
      lib.nameValuePair "systemd/system/${name}.${suffix}" {
        source = pkgs.writeUnit "${name}.${suffix}" {
          Unit = {
            Description = unit.description;
            After = unit.after;
          };
          ${section} = unit."${suffix}Config";
          Install.WantedBy = unit.wantedBy;
        };
      }
    ) (lib.filterAttrs (_: unit: unit."${suffix}Config" != { }) of);

  settings' =
    type:
    mkOption {
      inherit type;
      default = [ ];
    };
in

{
  options = {
    assertions = settings' (types.listOf types.raw);
    environment.systemPackages = settings' (types.listOf types.package);
    environment.etc = settings (
      types.attrsOf (
        types.submodule (
          { config, name, ... }:
          {
            options = {
              text = mkOption {
                type = types.nullOr types.str;
                default = null;
              };
              source = mkOption { type = types.path; };
            };
            config.source = lib.mkIf (config.text != null) (
              lib.mkDefault (pkgs.writeText (baseNameOf name) config.text)
            );
          }
        )
      )
    );
    systemd.packages = settings' (types.listOf types.package);
    systemd.services = unit;
    systemd.timers = unit;
    virtualisation.containers.enable = flag;
    virtualisation.containers.containersConf.settings = settings toml.type;
    virtualisation.podman.enable = flag;
    virtualisation.docker.enable = flag;
    virtualisation.docker.daemon.settings = settings anything;
    virtualisation.containerd.enable = flag;
    virtualisation.containerd.settings = settings toml.type;
    virtualisation.containerd.configFile = mkOption {
      type = types.nullOr types.path;
      default = null;
    };
    system.build.etc = mkOption { type = types.package; };
  };

  config = {
    virtualisation.containers.enable = lib.mkIf config.virtualisation.podman.enable true;
    # As of NixOS 25.11.
    virtualisation.containerd.settings = {
      version = 2;
      plugins."io.containerd.grpc.v1.cri".cni.bin_dir = lib.mkDefault "/opt/cni/bin";
    };
    environment.etc = lib.mkMerge [
      (units "service" "Service" config.systemd.services)
      (units "timer" "Timer" config.systemd.timers)
      (lib.mkIf config.virtualisation.containers.enable {
        "containers/containers.conf".source =
          toml.generate "containers.conf" config.virtualisation.containers.containersConf.settings;
      })
      (lib.mkIf config.virtualisation.docker.enable {
        "standin/daemon.json".text = builtins.toJSON config.virtualisation.docker.daemon.settings;
      })
      (lib.mkIf config.virtualisation.containerd.enable {
        "standin/containerd.toml".source =
          toml.generate "containerd.toml" config.virtualisation.containerd.settings;
      })
    ];
    system.build.etc = pkgs.runCommand "etc" { } (
      lib.concatStringsSep "" (
        lib.mapAttrsToList (name: file: ''
          mkdir -p "$(dirname "$out/${name}")"
          ln -s ${file.source} "$out/${name}"
        '') config.environment.etc
      )
      + lib.concatStringsSep "" (
        map (package: ''
          mkdir -p $out/systemd/system
          ln -s ${package}/lib/systemd/system/* $out/systemd/system/
        '') config.systemd.packages
      )
    );
  };
}
