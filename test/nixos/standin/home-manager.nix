# SPDX-License-Identifier: Apache-2.0

# A stand-in for the options of Home Manager that nix/home-manager.nix defines, and for
# what it makes of them: build.home has the files of the user's home directory.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;
  anything = types.attrsOf types.anything;
  option =
    type: default:
    mkOption {
      inherit type default;
    };
  files = option (types.attrsOf (
    types.submodule { options.source = mkOption { type = types.path; }; }
  )) { };
  link =
    below:
    lib.mapAttrsToList (
      name: file: ''
        mkdir -p "$(dirname "$out/${below}/${name}")"
        ln -s ${file.source} "$out/${below}/${name}"
      ''
    );
in

{
  options = {
    assertions = option (types.listOf types.raw) [ ];
    home.homeDirectory = mkOption { type = types.str; };
    home.profileDirectory = option types.str "${config.home.homeDirectory}/.nix-profile";
    home.packages = option (types.listOf types.package) [ ];
    xdg.dataHome = option types.str "${config.home.homeDirectory}/.local/share";
    xdg.configFile = files;
    xdg.dataFile = files;
    systemd.user.services = option (types.attrsOf anything) { };
    systemd.user.timers = option (types.attrsOf anything) { };
    build.home = mkOption { type = types.package; };
  };

  config.xdg.configFile =
    let
      units =
        suffix:
        lib.mapAttrs' (
          name: sections:
          lib.nameValuePair "systemd/user/${name}.${suffix}" {
            source = pkgs.writeUnit "${name}.${suffix}" sections;
          }
        );
    in
    lib.mkMerge [
      (units "service" config.systemd.user.services)
      (units "timer" config.systemd.user.timers)
    ];
  config.build.home = pkgs.runCommand "home" { } (
    lib.concatStringsSep "" (
      link ".config" config.xdg.configFile ++ link ".local/share" config.xdg.dataFile
    )
  );
}
