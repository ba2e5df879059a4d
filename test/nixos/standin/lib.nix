# SPDX-License-Identifier: Apache-2.0

# A stand-in for the part of nixpkgs' lib that nix/ uses, since the tests have no nixpkgs.
# Names and meanings are those of nixpkgs: options, definitions with mkIf, mkMerge and
# priorities, types that check and merge, submodules, free forms. An option that nobody
# declares, and a value of the wrong type, are errors. What nix/ does not use is missing.
let
  inherit (builtins)
    all
    any
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    hasAttr
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    removeAttrs
    replaceStrings
    stringLength
    substring
    tail
    toString
    ;

  # Attribute sets, lists, strings.
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  nameValuePair = name: value: { inherit name value; };
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
  filterAttrs =
    keep: set:
    listToAttrs (
      concatMap (name: optional (keep name set.${name}) (nameValuePair name set.${name})) (attrNames set)
    );
  optional = condition: value: if condition then [ value ] else [ ];
  optionals = condition: values: if condition then values else [ ];
  optionalAttrs = condition: set: if condition then set else { };
  unique = foldl' (seen: value: if elem value seen then seen else seen ++ [ value ]) [ ];
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  escapeShellArg = value: "'${replaceStrings [ "'" ] [ "'\\''" ] (toString value)}'";
  escapeShellArgs = values: concatStringsSep " " (map escapeShellArg values);
  dotted = concatStringsSep ".";

  # Options and definitions.
  mkOption = attributes: attributes // { _type = "option"; };
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkForce = mkOverride 50;
  mkDefault = mkOverride 1000;
  mkOrder = priority: content: {
    _type = "order";
    inherit priority content;
  };
  mkAfter = mkOrder 1500;
  mkOptionDefault = mkOverride 1500;
  literalExpression = text: {
    _type = "literalExpression";
    inherit text;
  };

  isA = type: value: isAttrs value && (value._type or null) == type;

  # pushDown turns properties of an attribute set into properties of its attributes, and
  # looks at no condition.
  pushDown =
    value:
    if isA "if" value then
      map (mapAttrs (_: mkIf value.condition)) (pushDown value.content)
    else if isA "override" value then
      map (mapAttrs (_: mkOverride value.priority)) (pushDown value.content)
    else if isA "order" value then
      map (mapAttrs (_: mkOrder value.priority)) (pushDown value.content)
    else if isA "merge" value then
      concatMap pushDown value.contents
    else
      [ value ];

  # discharge turns a definition into values with priorities.
  discharge =
    value:
    if isA "if" value then
      (if value.condition then discharge value.content else [ ])
    else if isA "merge" value then
      concatMap discharge value.contents
    else if isA "override" value then
      map (inner: inner // { inherit (value) priority; }) (discharge value.content)
    else if isA "order" value then
      map (inner: inner // { order = value.priority; }) (discharge value.content)
    else
      [
        {
          priority = 100;
          order = 1000;
          inherit value;
        }
      ];

  # winners are the values of the strongest priority, in order.
  winners =
    definitions:
    let
      values = concatMap discharge definitions;
      strongest = foldl' (least: d: if d.priority < least then d.priority else least) 9999 values;
    in
    map (d: d.value) (builtins.sort (a: b: a.order < b.order) (filter (d: d.priority == strongest) values));

  # merged has the value of an option or of a part of one, unless it has no definition.
  merged =
    path: type: definitions:
    let
      values = winners definitions;
      wrong = filter (value: !type.check value) values;
    in
    if values == [ ] then
      { }
    else if wrong != [ ] then
      {
        value = throw "A definition for option `${dotted path}' is not of type `${type.description}'";
      }
    else
      { value = type.merge path values; };

  # Types.
  once =
    path: values:
    if length values == 1 then
      head values
    else
      throw "The option `${dotted path}' is defined more than once";
  equal =
    path: values:
    if all (value: value == head values) values then
      head values
    else
      throw "The option `${dotted path}' has conflicting definition values";

  simple = description: check: merge: { inherit description check merge; };

  isStorePath = value: match "/nix/store/[0-9a-z]{32}-[^/]+" (toString value) != null;
  isDerivation = value: isAttrs value && (value.type or null) == "derivation";

  types = rec {
    bool = simple "boolean" isBool equal;
    str = simple "string" isString equal;
    ints.positive = simple "positive integer, meaning >0" (value: isInt value && value > 0) equal;
    enum =
      values:
      simple "one of ${concatStringsSep ", " (map builtins.toJSON values)}" (value: elem value values) equal;
    path = simple "absolute path" (
      value: isPath value || isDerivation value || isString value && hasPrefix "/" value
    ) equal;
    package =
      simple "package"
        (value: isDerivation value || (isString value || isPath value) && isStorePath value)
        (
          path: values:
          let
            value = once path values;
          in
          if isAttrs value || isString value && builtins.hasContext value then
            value
          else
            {
              type = "derivation";
              outPath = builtins.storePath value;
              name = baseNameOf value;
            }
        );
    raw = simple "raw value" (_: true) once;
    anything = simple "anything" (_: true) (
      path: values: if all isAttrs values then (attrsOf anything).merge path values else equal path values
    );
    nullOr =
      type:
      simple "null or ${type.description}" (value: value == null || type.check value) (
        path: values:
        if all (value: value == null) values then
          null
        else if any (value: value == null) values then
          throw "The option `${dotted path}' is defined both null and not null"
        else
          type.merge path values
      )
      // {
        options = type.options or null;
      };
    listOf =
      type:
      simple "list of ${type.description}" isList (
        path: values:
        concatMap (
          value:
          let
            one = merged (path ++ [ "*" ]) type [ value ];
          in
          optional (one ? value) one.value
        ) (concatLists values)
      )
      // {
        options = type.options or null;
        below = "*";
      };
    nonEmptyListOf =
      type:
      let
        list = listOf type;
      in
      list
      // {
        description = "non-empty ${list.description}";
        check = value: list.check value && value != [ ];
      };
    attrsOf =
      type:
      simple "attribute set of ${type.description}" isAttrs (
        path: values:
        let
          all' = concatMap pushDown values;
          names = unique (concatMap attrNames all');
          parts = genAttrs names (
            name:
            merged (path ++ [ name ]) type (concatMap (set: optional (hasAttr name set) set.${name}) all')
          );
        in
        mapAttrs (_: part: part.value) (filterAttrs (_: part: part ? value) parts)
      )
      // {
        options = type.options or null;
        below = "<name>";
      };
    either =
      a: b:
      simple "${a.description} or ${b.description}" (value: a.check value || b.check value) (
        path: values: if all a.check values then a.merge path values else b.merge path values
      );
    oneOf = list: foldl' either (head list) (tail list);
    submodule =
      module:
      let
        evaluate =
          path: values:
          evalModules {
            inherit path;
            modules = [ module ] ++ map (config: { inherit config; }) values;
            specialArgs.name = if path == [ ] then "<name>" else builtins.elemAt path (length path - 1);
          };
      in
      simple "submodule" isAttrs (path: values: (evaluate path values).config)
      // {
        options = (evaluate [ ] [ ]).options;
      };
  };

  # Modules.

  # load returns a module and those that it imports, in one form.
  load =
    args: module:
    let
      read = if isPath module || isString module then import module else module;
      value = if isFunction read then read args else read;
      isFull = value ? options || value ? config;
    in
    concatMap (load args) (value.imports or [ ])
    ++ [
      {
        options = value.options or { };
        freeformType = value.freeformType or null;
        config =
          if isFull then
            value.config or { }
          else
            removeAttrs value [
              "imports"
              "freeformType"
            ];
      }
    ];

  evalModules =
    {
      modules,
      specialArgs ? { },
      path ? [ ],
    }:
    let
      loaded = concatMap (load (specialArgs // { inherit config lib options; })) modules;
      freeForms = filter (type: type != null) (map (module: module.freeformType) loaded);

      # tree has the options, the values and the strange definitions below a place.
      tree =
        place: declarations: definitions:
        let
          names = unique (concatMap attrNames declarations);
          sets = concatMap pushDown definitions;
          given = name: concatMap (set: optional (hasAttr name set) set.${name}) sets;
          branches = genAttrs names (
            name:
            let
              here = place ++ [ name ];
              declared = concatMap (set: optional (hasAttr name set) set.${name}) declarations;
              option = head declared;
            in
            if !any (isA "option") declared then
              tree here declared (given name)
            else if length declared > 1 then
              throw "The option `${dotted here}' is declared more than once"
            else
              let
                part = merged here option.type (
                  optional (option ? default) (mkOptionDefault option.default) ++ given name
                );
              in
              {
                options = option // {
                  isDefined = part ? value;
                };
                value = part.value or (throw "The option `${dotted here}' is used but not defined");
                strange = [ ];
              }
          );
          strange = filter (name: !elem name names) (unique (concatMap attrNames sets));
        in
        {
          options = mapAttrs (_: branch: branch.options) branches;
          value = mapAttrs (_: branch: branch.value) branches;
          strange =
            map (name: place ++ [ name ]) strange ++ concatMap (name: branches.${name}.strange) names;
          # Of the topmost place only, where free forms are used.
          rest = genAttrs strange (name: mkMerge (given name));
        };

      whole = tree path (map (module: module.options) loaded) (map (module: module.config) loaded);
      options = whole.options;
      config =
        whole.value
        // optionalAttrs (freeForms != [ ]) (
          removeAttrs ((head freeForms).merge path [ whole.rest ]) (attrNames whole.value)
        );
    in
    {
      inherit options;
      config =
        if freeForms == [ ] && whole.strange != [ ] then
          throw "The option `${dotted (head whole.strange)}' does not exist"
        else
          config;
    };

  # Files.
  fileset = {
    unions = paths: paths;
    toSource =
      { root, fileset }:
      {
        outPath = builtins.path {
          path = root;
          name = "source";
          filter =
            path: _:
            any (
              wanted:
              path == toString wanted
              || hasPrefix "${toString wanted}/" path
              || hasPrefix "${path}/" (toString wanted)
            ) fileset;
        };
      };
  };

  lib = {
    inherit
      attrNames
      concatLists
      concatMap
      concatStringsSep
      escapeShellArg
      escapeShellArgs
      evalModules
      fileset
      filterAttrs
      genAttrs
      hasPrefix
      isDerivation
      literalExpression
      mapAttrs
      mapAttrs'
      mapAttrsToList
      mkAfter
      mkDefault
      mkForce
      mkIf
      mkMerge
      mkOption
      nameValuePair
      optional
      optionalAttrs
      optionals
      types
      unique
      ;
    licenses.asl20.spdxId = "Apache-2.0";
  };
in
lib
