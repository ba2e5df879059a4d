module github.com/nix-closure/nix-closure/test

go 1.26.0
