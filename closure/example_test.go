// SPDX-License-Identifier: Apache-2.0

package closure_test

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nix-closure/nix-closure/closure"
)

var store = closure.Store{Dir: "/nix/store", StateDir: "/nix/var/nix"}

const hello = "63l345l7dgcfz789w1y93j1540czafqh-hello-2.12"

func ExampleParseBaseName() {
	base, err := closure.ParseBaseName(hello)
	fmt.Println(base, err)

	// No e, o, u or t in Nix's base 32.
	_, err = closure.ParseBaseName("euot45l7dgcfz789w1y93j1540czafqh-hello")
	fmt.Println(err)
	// Output:
	// 63l345l7dgcfz789w1y93j1540czafqh-hello-2.12 <nil>
	// the hash is not 32 characters of Nix's base 32
}

func ExampleStore_Parse() {
	for _, path := range []string{
		"/nix/store/" + hello,
		"/nix/store/" + hello + "/bin/hello",
		"/nix/storeX/" + hello,
		"/nix/store/" + hello + "/../../../etc",
	} {
		base, err := store.Parse(path)
		if err != nil {
			fmt.Println(errors.Is(err, closure.ErrOutside), errors.Is(err, closure.ErrSubpath))
			continue
		}
		fmt.Println(store.Path(base))
	}
	// Output:
	// /nix/store/63l345l7dgcfz789w1y93j1540czafqh-hello-2.12
	// /nix/store/63l345l7dgcfz789w1y93j1540czafqh-hello-2.12
	// true false
	// false true
}

func ExampleStore_ParseExact() {
	_, err := store.ParseExact("/nix/store/" + hello + "/bin/hello")
	fmt.Println(errors.Is(err, closure.ErrBelow))
	// Output:
	// true
}

// The `store-paths` file of nixpkgs' closureInfo.
func ExampleParseStorePaths() {
	text := "/nix/store/" + hello + "\n/nix/store/sl141d1g77wvhr050ah87lcyz2czdxa3-glibc-2.40\n"
	names, err := closure.ParseStorePaths(store, strings.NewReader(text), 50_000)
	fmt.Println(len(names), err)

	_, err = closure.ParseStorePaths(store, strings.NewReader(text), 1)
	var tooLarge *closure.TooLargeError
	fmt.Println(errors.As(err, &tooLarge))
	// Output:
	// 2 <nil>
	// true
}

// The `registration` file of nixpkgs' closureInfo, which nix-store --load-db reads.
func ExampleParseDump() {
	c := closure.New(store, []closure.BaseName{hello})
	text := "/nix/store/" + hello + "\n" +
		"sha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0\n" + // of the NAR
		"226560\n" + // bytes of the NAR
		"\n" + // no deriver
		"1\n" + // one reference: itself
		"/nix/store/" + hello + "\n"
	infos, err := closure.ParseDump(store, c, strings.NewReader(text))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(infos[0].Name, infos[0].NarSize, infos[0].References)
	// Output:
	// 63l345l7dgcfz789w1y93j1540czafqh-hello-2.12 226560 [63l345l7dgcfz789w1y93j1540czafqh-hello-2.12]
}

func ExampleParseNarHash() {
	hash, err := closure.ParseNarHash("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
	fmt.Println(hash, err)
	// Output:
	// sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 <nil>
}

// The order of the names does not matter, and a name counts once.
func ExampleNew() {
	a := closure.New(store, []closure.BaseName{hello, "sl141d1g77wvhr050ah87lcyz2czdxa3-glibc-2.40"})
	b := closure.New(store, []closure.BaseName{"sl141d1g77wvhr050ah87lcyz2czdxa3-glibc-2.40", hello, hello})
	fmt.Println(a.Digest() == b.Digest())
	fmt.Print(a.Text())
	// Output:
	// true
	// /nix/store
	// 63l345l7dgcfz789w1y93j1540czafqh-hello-2.12
	// sl141d1g77wvhr050ah87lcyz2czdxa3-glibc-2.40
}

func ExampleParse() {
	c, err := closure.Parse(store, "/nix/store\n"+hello+"\n")
	fmt.Println(c.Names, err)
	_, err = closure.Parse(store, "/nix/store\n"+hello)
	fmt.Println(err)
	// Output:
	// [63l345l7dgcfz789w1y93j1540czafqh-hello-2.12] <nil>
	// not the text of a closure: the last line is cut off
}
