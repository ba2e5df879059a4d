# SPDX-License-Identifier: Apache-2.0

# A store with something of everything that closures are made of, from the
# programs of this Debian machine: no nixpkgs, nothing fetched.
#
# `versions` is what the machine has: { package = "version"; … }.
{ versions }:

let
  # No shell or program of the store can build the first path of it; the builds
  # run without a sandbox and take the machine's.
  run = name: script: attrs:
    derivation ({
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-euc" script ];
      PATH = "/usr/bin:/bin";
      LC_ALL = "C";
    } // attrs);

  versionOf = package:
    versions.${package} or (throw "the Debian package ${package} is not installed");

  # A store path's name can have neither the epoch's colon nor a tilde.
  nameOf = package:
    let version = builtins.elemAt (builtins.match "([0-9]+:)?(.*)" (versionOf package)) 1;
    in "${package}-${builtins.replaceStrings [ "~" ] [ "_" ] version}";

  # A Debian package, moved into the store. What it references is what Nix finds
  # in it: `libraries` is only where its programs and libraries may look.
  package = name: libraries: debian name { inherit libraries; };
  debian = name: { and ? [ ], libraries ? [ ], without ? [ ], finish ? "" }:
    let packages = [ name ] ++ and;
    in run (nameOf name) null {
      args = [ ./relocate.sh ];
      inherit packages libraries without finish;
      # So that another version of any of them is another store path.
      versions = map versionOf packages;
      libc = if name == "libc6" then "" else libc;
    };

  # The C library opens libgcc_s by name to end a thread, and libgcc_s needs the
  # C library: two store paths cannot reference each other, so they are one.
  libc = debian "libc6" {
    and = [ "libgcc-s1" ];
    # Like nixpkgs' it looks for libraries, their cache and locales in no
    # directory of the image: in the same number of bytes, where nothing is.
    finish = ''
      sed -i 's,/etc/ld\.so\.cache,/nix/ld.so.cache,g; s,/lib/,/nix/,g' \
        $out/lib/ld-linux-*.so.* $out/lib/libc.so.6
    '';
  };

  libacl = package "libacl1" [ ];
  libattr = package "libattr1" [ ];
  libbz2 = package "libbz2-1.0" [ ];
  libcrypt = package "libcrypt1" [ ];
  libdb = package "libdb5.3" [ ];
  libexpat = package "libexpat1" [ ];
  libffi = package "libffi8" [ ];
  libgmp = package "libgmp10" [ ];
  liblzma = package "liblzma5" [ ];
  libncursesw = package "libncursesw6" [ libtinfo ];
  libpcre2 = package "libpcre2-8-0" [ ];
  libreadline = package "libreadline8" [ libtinfo ];
  libselinux = package "libselinux1" [ libpcre2 ];
  libsqlite3 = package "libsqlite3-0" [ ];
  libssl = package "libssl3" [ ];
  libtinfo = package "libtinfo6" [ ];
  libuuid = package "libuuid1" [ ];
  zlib = package "zlib1g" [ ];

  bash = debian "bash" {
    libraries = [ libtinfo ];
    # A restricted or a debugging bash under another name helps nobody here.
    without = [ "*/rbash" "*/clear_console" ];
    finish = "ln -s bash $out/bin/sh";
  };

  coreutils = debian "coreutils" {
    libraries = [ libacl libattr libgmp libselinux ];
    # stdbuf loads a library from /usr/libexec.
    without = [ "*/stdbuf" ];
  };

  # Debian's python3 says which Python: 3.11.2-1 is python3.11.
  pythonX = "python${builtins.head (builtins.match "([0-9]+\\.[0-9]+).*" (versionOf "python3"))}";

  # Python finds its modules next to the directory of its program, so program
  # and modules are one store path.
  python = debian pythonX {
    and = [ "${pythonX}-minimal" "lib${pythonX}-minimal" "lib${pythonX}-stdlib" ];
    libraries = [
      libbz2 libcrypt libdb libexpat libffi liblzma libncursesw libreadline
      libsqlite3 libssl libtinfo libuuid zlib
    ];
    without = [
      # Half of the size, and nothing that runs here.
      "*/test" "*/test/*" "*/idlelib" "*/idlelib/*" "*/pydoc_data/*"
      "*/lib-dynload/_test*" "*/lib-dynload/_xxtest*" "*/lib-dynload/_ctypes_test*"
      "*/lib-dynload/xx*"
      # Brings Kerberos along.
      "*/lib-dynload/nis.*"
      # Links to /etc.
      "*/sitecustomize.py"
    ];
    finish = ''
      ln -s ${pythonX} $out/bin/python3
      # As programs, some modules would run the host's Python.
      find $out/lib -name '*.py' -exec chmod a-x {} +
    '';
  };

  # A store path that is a file, and a program.
  script = run "greet" ''
    printf '%s\n' \
      '#!${bash}/bin/bash' \
      '${coreutils}/bin/printf "Hello, %s!\n" "''${1:-world}"' > $out
    chmod +x $out
  '' { };

  # A store path that is a file, and nothing but data.
  data = run "numbers.txt" "seq 20000 > $out" { };

  # A store path that is a symlink.
  link = run "bash-link" "ln -s ${bash} $out" { };

  # A name, and names inside, that quoting or parsing may trip over.
  plus = run "libfoo++-1.2_3" ''
    mkdir -p $out/include/foo++/detail $out/lib/empty.d $out/share/doc
    echo '#pragma once' > $out/include/foo++/foo.hpp
    echo '#pragma once' > $out/include/foo++/detail/deep.hpp
    ln -s foo++/foo.hpp $out/include/relative.hpp
    ln -s $out/include/foo++/detail/deep.hpp $out/include/absolute.hpp
    : > $out/lib/empty
    echo twin > $out/lib/twin-1
    ln $out/lib/twin-1 $out/lib/twin-2
    echo spaces > "$out/share/doc/with two  spaces.txt"
    echo unicode > "$out/share/doc/grüße, 世界.txt"
    echo quotes > "$out/share/doc/it's \"quoted\", \$HOME; a\\b, c:d.txt"
  '' { };

  # All programs of the given paths in one bin/, as a profile has them.
  programs = paths: ''
    mkdir -p $out/bin
    for path in ${toString paths}; do
      ln -s $path/bin/* $out/bin/
    done
  '';

  env = run "test-env" ''
    ${programs [ bash coreutils python ]}
    mkdir $out/share
    ln -s ${script} $out/share/script
    ln -s ${data} $out/share/data
    ln -s ${link} $out/share/link
    ln -s ${plus} $out/share/plus
  '' { };

  # A closure that is part of env's, but for its root.
  tools = run "test-tools" (programs [ bash coreutils ]) { };

  # What no container of the tests asks for, and none may see.
  foreign = run "foreign-secret" ''
    mkdir -p $out/bin
    echo 'another tenant' > $out/secret
    cp /bin/busybox $out/bin/busybox
  '' { };

  # What nixpkgs' closureInfo writes for env.
  closureInfo = derivation {
    name = "closure-info";
    system = builtins.currentSystem;
    builder = "${python}/bin/python3";
    # -B: root could write bytecode into the registered store path.
    args = [ "-B" ./closure-info.py ];
    # Only structured attributes have a graph with hashes and sizes.
    __structuredAttrs = true;
    exportReferencesGraph.closure = [ env ];
  };

in {
  inherit libc bash coreutils python script data link plus env tools foreign closureInfo;
}
