# SPDX-License-Identifier: Apache-2.0

# The NixOS module. It has in force what `nix-closure install` would write.
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

  # An engine remembers the path of a container's runtime for the life of the container.
  # So it is one that outlives an upgrade and the garbage collector.
  wrapper = "/run/current-system/sw/bin/nix-closure-runtime";
  handler = "nix-closure";

  engine =
    name: text: default:
    {
      enable = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether ${name} gets nix-closure: ${text}";
      };
      setAsDefault = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether the wrapper `nix-closure-runtime` is ${default}.";
      };
    };

  # A key of config.toml. Only those that are set are written.
  key =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  text = key types.str;
  flag = key types.bool;
  count = key types.ints.positive;
  size = key (types.either types.ints.positive types.str);

  written = lib.filterAttrs (_: value: value != null);

  configFile = toml.generate "nix-closure.toml" (
    written cfg.settings // lib.optionalAttrs (cfg.allow != [ ]) { allow = map written cfg.allow; }
  );

  # The annotations of a closure with a name, as the arguments of its hook.
  annotations =
    closure:
    lib.concatLists (
      lib.mapAttrsToList
        (name: value: [
          "--annotation"
          "nix-closure/${name}=${value}"
        ])
        (
          {
            roots = lib.concatStringsSep ":" (map (root: "${root}") closure.roots);
          }
          // lib.optionalAttrs (closure.mode != null) { inherit (closure) mode; }
          // lib.optionalAttrs (!closure.listing) { listing = "false"; }
          // lib.optionalAttrs closure.registration { registration = "true"; }
          // lib.optionalAttrs closure.writable { writable = "true"; }
        )
    );

  device = name: closure: {
    inherit name;
    containerEdits.hooks =
      map
        (stage: {
          hookName = stage;
          path = "${cfg.package}/bin/nix-closure-hook";
          args = [ "nix-closure-hook" ] ++ annotations closure ++ [ stage ];
          env = [ "GOMAXPROCS=1" ];
        })
        [
          "createRuntime"
          "poststop"
        ];
  };

  devices = {
    cdiVersion = "0.5.0";
    kind = "nix-closure/closure";
    devices = lib.mapAttrsToList device cfg.cdi.closures;
  };

  # The handler is as the node's default handler is, or runc.
  containerd = config.virtualisation.containerd.settings;
  cri =
    containerd.plugins."io.containerd.cri.v1.runtime".containerd
      or containerd.plugins."io.containerd.grpc.v1.cri".containerd or { };
  nodes = cri.runtimes.${cri.default_runtime_name or "runc"} or { };
  base = lib.optionalAttrs ((nodes.runtime_type or "io.containerd.runc.v2") == "io.containerd.runc.v2") nodes;
  passed =
    of:
    lib.unique (
      [
        "nix-closure/*"
        "*.nix-closure/*"
      ]
      ++ of
    );
  dropIn = {
    version = 3;
    plugins."io.containerd.cri.v1.runtime" = {
      containerd = {
        runtimes.${handler} =
          removeAttrs base [
            "runtime_path"
            "sandboxer"
          ]
          // {
            runtime_type = "io.containerd.runc.v2";
            pod_annotations = passed (base.pod_annotations or [ ]);
            container_annotations = passed (base.container_annotations or [ ]);
            options = (base.options or { }) // {
              BinaryName = wrapper;
            };
          };
      }
      // lib.optionalAttrs cfg.containerd.setAsDefault { default_runtime_name = handler; };
    };
  };

  canaryEngines =
    lib.optional cfg.podman.enable "podman"
    ++ lib.optional cfg.containerd.enable "containerd"
    ++ lib.optional cfg.docker.enable "docker";
in

{
  options.virtualisation.nix-closure = {
    enable = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether to install nix-closure, which gives a container exactly its closure in
        /nix/store. Enable it for each of the engines too.
      '';
    };

    package = mkOption {
      type = types.package;
      default = pkgs.nix-closure or (pkgs.callPackage ./package.nix { });
      defaultText = lib.literalExpression "pkgs.nix-closure, if there is an overlay with it";
      description = "The package with the programs and the hook files.";
    };

    settings = mkOption {
      default = { };
      example = {
        substitute = true;
        writable-size = "512M";
      };
      description = ''
        The keys of /etc/nix-closure/config.toml. docs/configuration.md describes them. With
        a key that nix-closure does not know, no container with an annotation starts.
      '';
      type = types.submodule {
        freeformType = toml.type;
        options = {
          store-dir = text "Nix's store.";
          state-dir = text "Nix's state directory.";
          runtime-dir = text "The directory of views, resolved closures and records.";
          runtime-inodes = count "How many files views and closures may take in `runtime-dir`.";
          runtime-size = size "The same in bytes, like `64M`.";
          log-file = text "The log, as JSON lines.";
          mode = key (types.enum [
            "auto"
            "overlay"
            "bind"
          ]) "The mode of containers whose annotations name none.";
          nix-store = text "The absolute path of the program `nix-store`.";
          max-paths = count "The hook refuses larger closures.";
          writable-size = size "How much one container may write into its store, like `512M`.";
          substitute = flag "Whether the hook fetches a missing root from the host's substituters.";
          substitute-timeout = text "For how long it fetches, for one container, like `100s`.";
          shared-pid = flag ''
            Whether a container with an annotation may have the host's PID namespace, or that of
            a container that sees more.
          '';
          fuse = flag "Whether a container with an annotation may mount FUSE file systems.";
          runtime = text "What the wrapper becomes: the name or the path of runc or crun.";
          engine = key (types.enum [
            ""
            "cri-o"
          ]) "The engine that calls the wrapper, if the wrapper cannot recognise it.";
        };
      };
    };

    allow = mkOption {
      default = [ ];
      example = [
        {
          namespaces = [ "team-a" ];
          roots = [ "/nix/var/nix/gcroots/teams/a/*" ];
        }
      ];
      description = ''
        What containers may ask for. Without a rule, a container may ask for any valid store
        path. It does not apply to the closures of `cdi.closures`: who writes those is root.
      '';
      type = types.listOf (
        types.submodule {
          options = {
            namespaces = mkOption {
              type = types.nullOr (types.nonEmptyListOf types.str);
              default = null;
              description = "The Kubernetes namespaces of the rule; null: it is for every container.";
            };
            roots = mkOption {
              type = types.nonEmptyListOf types.str;
              description = "Globs of store paths, or of links to them.";
            };
          };
        }
      );
    };

    podman = engine "podman" "its hook files." "podman's runtime";
    docker =
      engine "Docker" "the wrapper is a runtime with the name nix-closure."
        "the runtime of containers that name none";
    containerd =
      engine "containerd" "the wrapper is a handler with the name nix-closure, for pods with that RuntimeClass."
        "the handler of pods without a RuntimeClass";

    cdi.closures = mkOption {
      default = { };
      example = lib.literalExpression "{ hello.roots = [ pkgs.hello ]; }";
      description = ''
        Closures with a name, in /etc/cdi/nix-closure.json, for
        `podman run --device nix-closure/closure=NAME`. Their roots are in the closure of the
        system, so they need no other GC root.
      '';
      type = types.attrsOf (
        types.submodule {
          options = {
            roots = mkOption {
              type = types.nonEmptyListOf types.package;
              example = lib.literalExpression "[ pkgs.hello ]";
              description = "The roots: packages, or store paths.";
            };
            mode = mkOption {
              type = types.nullOr (
                types.enum [
                  "auto"
                  "overlay"
                  "bind"
                ]
              );
              default = null;
              description = "How the view is made; null: as `settings.mode` says.";
            };
            registration = mkOption {
              type = types.bool;
              default = false;
              description = "Whether the container gets a Nix database of exactly the closure.";
            };
            listing = mkOption {
              type = types.bool;
              default = true;
              description = "Whether processes of the container can list the store directory.";
            };
            writable = mkOption {
              type = types.bool;
              default = false;
              description = "Whether processes of the container can add store paths, in memory.";
            };
          };
        }
      );
    };

    nri.enable = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to run the NRI plugin for containerd and CRI-O, as a service.";
    };

    canary = {
      enable = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether to run the canary of every engine that is enabled here, by a timer. The
          canary asks for a closure that cannot exist. The service nix-closure-canary fails if
          an engine starts it, or if an engine does not refuse it for that reason.
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
            assertion = !cfg.settings ? allow;
            message = "virtualisation.nix-closure.settings.allow: use virtualisation.nix-closure.allow instead";
          }
          {
            assertion = cfg.podman.enable -> config.virtualisation.containers.enable;
            message = "virtualisation.nix-closure.podman.enable needs virtualisation.podman.enable";
          }
          {
            assertion = cfg.docker.enable -> config.virtualisation.docker.enable;
            message = "virtualisation.nix-closure.docker.enable needs virtualisation.docker.enable";
          }
          {
            assertion = cfg.containerd.enable -> config.virtualisation.containerd.enable;
            message = "virtualisation.nix-closure.containerd.enable needs virtualisation.containerd.enable";
          }
          {
            # NixOS ignores settings then, and the handler would be missing.
            assertion = cfg.containerd.enable -> config.virtualisation.containerd.configFile or null == null;
            message = ''
              virtualisation.nix-closure.containerd.enable needs virtualisation.containerd.settings;
              virtualisation.containerd.configFile takes their place
            '';
          }
          {
            assertion = cfg.canary.enable -> canaryEngines != [ ];
            message = ''
              virtualisation.nix-closure.canary.enable needs an engine: podman.enable, docker.enable
              or containerd.enable of virtualisation.nix-closure
            '';
          }
        ]
        ++ lib.concatMap (
          of:
          lib.optional (cfg.${of}.setAsDefault) {
            assertion = cfg.${of}.enable;
            message = "virtualisation.nix-closure.${of}.setAsDefault needs virtualisation.nix-closure.${of}.enable";
          }
        ) [ "podman" "docker" "containerd" ]
        ++ map (name: {
          assertion = builtins.match "[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?" name != null;
          message = ''
            virtualisation.nix-closure.cdi.closures: "${name}" is no name of a CDI device: it has letters,
            digits and _ - . : and begins and ends with a letter or a digit
          '';
        }) (lib.attrNames cfg.cdi.closures);

        environment.systemPackages = [ cfg.package ];
        environment.etc."nix-closure/config.toml".source = configFile;
      }

      (mkIf cfg.podman.enable {
        # By their store paths, so that the program of a hook file cannot be missing: podman
        # would start containers without it.
        environment.etc =
          lib.genAttrs
            [
              "containers/oci/hooks.d/nix-closure-createRuntime.json"
              "containers/oci/hooks.d/nix-closure-poststop.json"
            ]
            (path: {
              source = "${cfg.package}/share/${path}";
            });
        virtualisation.containers.containersConf.settings.engine = {
          hooks_dir = lib.mkAfter [ "/etc/containers/oci/hooks.d" ];
          runtime = mkIf cfg.podman.setAsDefault wrapper;
        };
      })

      (mkIf cfg.docker.enable {
        virtualisation.docker.daemon.settings = {
          runtimes.${handler}.path = wrapper;
          default-runtime = mkIf cfg.docker.setAsDefault handler;
        };
      })

      (mkIf cfg.containerd.enable {
        virtualisation.containerd.settings.imports = [ "${toml.generate "nix-closure-containerd.toml" dropIn}" ];
      })

      (mkIf (cfg.docker.enable || cfg.containerd.enable || cfg.podman.setAsDefault) {
        # runc is on the PATH of some services only.
        virtualisation.nix-closure.settings.runtime = lib.mkDefault "${pkgs.runc}/bin/runc";
      })

      (mkIf (cfg.cdi.closures != { }) {
        environment.etc."cdi/nix-closure.json".text = builtins.toJSON devices;
        virtualisation.docker.daemon.settings.features.cdi = true;
      })

      (mkIf cfg.nri.enable {
        # The unit is the package's. NixOS does not read its [Install].
        systemd.packages = [ cfg.package ];
        systemd.services.nix-closure-nri.wantedBy = [ "multi-user.target" ];
      })

      (mkIf cfg.canary.enable {
        systemd.services.nix-closure-canary = {
          description = "nix-closure: each engine must refuse a closure that cannot exist";
          after = [
            "containerd.service"
            "docker.service"
          ];
          serviceConfig = {
            Type = "oneshot";
            ExecStart = "${import ./canary.nix {
              inherit lib pkgs;
              inherit (cfg) package;
              engines = canaryEngines;
            }}";
          };
        };
        systemd.timers.nix-closure-canary = {
          description = "nix-closure: the canary, every ${cfg.canary.interval}";
          wantedBy = [ "timers.target" ];
          timerConfig = {
            OnBootSec = "2min";
            OnUnitActiveSec = cfg.canary.interval;
            RandomizedDelaySec = "30s";
          };
        };
      })
    ]
  );
}
