# SPDX-License-Identifier: Apache-2.0

# A stand-in for the part of nixpkgs that nix/ uses. Its builders take the machine's shell,
# sed and Go, so builds run without a sandbox.
{
  lib,
  system ? builtins.currentSystem,
  # The machine's Go, its module cache and its build cache. The build cache keeps no path
  # from going unnoticed: it is asked with everything that goes into a package.
  go ? builtins.getEnv "STANDIN_GO",
  goModCache ? builtins.getEnv "STANDIN_GOMODCACHE",
  goCache ? builtins.getEnv "STANDIN_GOCACHE",
  goProxy ? builtins.getEnv "STANDIN_GOPROXY",
}:

let
  run =
    name: attributes: script:
    derivation (
      {
        inherit name system;
        builder = "/bin/bash";
        # Nix kills a builder that closes its output, as programs do a moment before they
        # end. So the last process is the shell.
        args = [
          "-euc"
          "${script}\nexit 0"
        ];
        PATH = "/usr/bin:/bin";
        LC_ALL = "C";
      }
      // attributes
    );

  writeFile =
    name: mode: text:
    run name { inherit text; } ''
      printf %s "$text" >"$out"
      chmod ${mode} "$out"
    '';

  goEnvironment = ''
    export HOME="$PWD" GOTOOLCHAIN=local GOWORK=off
    export GOMODCACHE=${goModCache} GOCACHE=${goCache} GOFLAGS="$GOFLAGS"
    export PATH=${dirOf go}:$PATH
  '';

  # The text of a value in TOML.
  inline =
    value:
    if builtins.isAttrs value && !lib.isDerivation value then
      let
        pairs = lib.mapAttrsToList (name: of: "${builtins.toJSON name} = ${inline of}") value;
      in
      "{ ${lib.concatStringsSep ", " pairs} }"
    else if builtins.isList value then
      "[${lib.concatStringsSep ", " (map inline value)}]"
    else
      builtins.toJSON value;

  # The text of a unit of systemd.
  writeUnit =
    name: sections:
    let
      section =
        header: settings:
        lib.optionals (settings != { }) (
          [ "[${header}]" ]
          ++ lib.concatLists (
            lib.mapAttrsToList (
              key: value: map (of: "${key}=${toString of}") (if builtins.isList value then value else [ value ])
            ) settings
          )
        );
    in
    pkgs.writeText name (
      lib.concatStringsSep "\n" (lib.concatLists (lib.mapAttrsToList section sections)) + "\n"
    );

  pkgs = {
    inherit lib system writeUnit;

    callPackage =
      path: overrides:
      let
        function = import path;
      in
      function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // overrides);

    writeText = name: writeFile name "444";
    writeShellScript = name: text: writeFile name "555" "#!/bin/sh\n${text}";
    runCommand = name: _: run name { };

    # In nixpkgs, its values are those of TOML, and null.
    formats.toml =
      { }:
      {
        type =
          with lib.types;
          let
            value =
              nullOr (oneOf [
                bool
                (lib.types.anything // { check = v: builtins.isInt v || builtins.isFloat v; })
                str
                path
                (attrsOf value)
                (listOf value)
              ])
              // {
                description = "TOML value";
              };
          in
          value;
        generate =
          name: value:
          pkgs.writeText name (
            lib.concatStringsSep "" (lib.mapAttrsToList (key: of: "${builtins.toJSON key} = ${inline of}\n") value)
          );
      };

    # installManPage and installShellCompletion are shell functions.
    installShellFiles = ''
      installManPage() {
        mkdir -p "$out/share/man/man1"
        cp "$@" "$out/share/man/man1"
      }
      installShellCompletion() {
        [ "$1" = --cmd ]
        local name=$2
        shift 2
        while [ $# -gt 0 ]; do
          case $1 in
          --bash) local to=bash-completion/completions/$name.bash ;;
          --zsh) local to=zsh/site-functions/_$name ;;
          --fish) local to=fish/vendor_completions.d/$name.fish ;;
          esac
          mkdir -p "$out/share/$(dirname "$to")"
          cat "$2" >"$out/share/$to"
          shift 2
        done
      }
    '';

    # As nixpkgs does it: the modules are an output with a known hash, and what is built
    # sees no others.
    buildGoModule =
      {
        pname,
        version,
        src,
        vendorHash,
        subPackages,
        ldflags,
        env,
        nativeBuildInputs,
        postInstall,
        doCheck,
        meta,
        passthru,
      }:
      let
        goModules =
          run "${pname}-${version}-go-modules"
            {
              outputHashMode = "recursive";
              outputHashAlgo = "sha256";
              outputHash = vendorHash;
              GOFLAGS = "-mod=mod";
            }
            ''
              ${goEnvironment}
              export GOPROXY=${if goProxy == "" then "off" else goProxy}
              mkdir source
              cp -r --no-preserve=mode ${src}/. source
              cd source
              go mod vendor
              cp -r vendor "$out"
            '';
      in
      run "${pname}-${version}"
        (
          env
          // {
            GOFLAGS = "-mod=vendor -trimpath";
            TMPDIR = ".";
          }
        )
        ''
          ${goEnvironment}
          ${lib.concatStringsSep "\n" nativeBuildInputs}
          export GOPROXY=off TMPDIR="$PWD"
          mkdir source
          cp -r --no-preserve=mode ${src}/. source
          cd source
          ln -s ${goModules} vendor
          mkdir -p "$out/bin"
          go build -ldflags ${lib.escapeShellArg (toString (ldflags ++ [ "-buildid=" ]))} -o "$out/bin/" \
            ${toString (map (package: "./${package}") subPackages)}
          ${postInstall}
        ''
      // {
        inherit
          pname
          version
          src
          vendorHash
          goModules
          meta
          passthru
          ;
      };

    # Not run here: only evaluated.
    testers.runNixOSTest =
      path: run "vm-test" { } "exit 1" // { test = import path { inherit pkgs; }; };
    dockerTools.buildImage = _: run "image" { } "exit 1";

    runc = run "runc" { } ''
      mkdir -p "$out/bin"
      ln -s "$(PATH=$PATH:/usr/sbin command -v runc)" "$out/bin/runc"
    '';
    # Programs without libraries, so that each is a closure.
    hello = run "hello" { } "mkdir -p $out/bin; cp /bin/busybox $out/bin/ls";
    coreutils = run "coreutils" { } "mkdir -p $out/bin; cp /bin/busybox $out/bin/ls";
  };
in
pkgs
