// SPDX-License-Identifier: Apache-2.0

// Does with manifests what an API server does when they are created, by its own
// packages and without a server:
//
//	manifests FILE...                    decode strictly, default, validate
//	manifests -policy FILE [-update]     ask the policies of FILE about the pods on
//	                                     standard input: `allowed` or `denied: MESSAGE`
//
// Names that an object has for others, such as its RuntimeClass, are not looked up.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	policies "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/warning"
	dynamic "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicy"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicybinding"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/node/runtimeclass"
)

func main() {
	klog.SetOutput(io.Discard)
	klog.LogToStderr(false)
	policy := flag.String("policy", "", "ask the policies of this file about pods")
	update := flag.Bool("update", false, "the pods are there already, and change in nothing")
	flag.Parse()
	failed := false
	if *policy == "" {
		for _, name := range flag.Args() {
			for _, message := range validateFile(name) {
				failed = true
				fmt.Printf("%s: %s\n", name, message)
			}
		}
	} else if err := ask(*policy, *update); err != nil {
		failed = true
		fmt.Fprintln(os.Stderr, err)
	}
	if failed {
		os.Exit(1)
	}
}

// validateFile returns what is wrong with a file's objects.
func validateFile(name string) (all []string) {
	f, err := os.Open(name)
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	count := 0
	err = documents(f, func(text []byte) error {
		count++
		object, err := decode(text)
		if err != nil {
			all = append(all, lines(err)...)
			return nil
		}
		warnings := &recorder{}
		what := object.GetObjectKind().GroupVersionKind().Kind
		_, err = create(warning.WithWarningRecorder(context.Background(), warnings), object)
		for _, message := range append(lines(err), warnings.all...) {
			all = append(all, what+": "+message)
		}
		return nil
	})
	if err != nil {
		all = append(all, err.Error())
	}
	if count == 0 {
		all = append(all, "no objects")
	}
	return all
}

// documents calls do with each document of a YAML stream that is more than comments.
func documents(r io.Reader, do func([]byte) error) error {
	stream := utilyaml.NewYAMLReader(bufio.NewReader(r))
	for {
		text, err := stream.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for line := range bytes.Lines(text) {
			if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
				if err := do(text); err != nil {
					return err
				}
				break
			}
		}
	}
}

// decode returns the object, in its version.
func decode(text []byte) (runtime.Object, error) {
	decoder := serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	object, _, err := decoder.Decode(text, nil, nil)
	return object, err
}

// strategies are what the API server does with each kind of object.
var strategies = map[string]rest.RESTCreateStrategy{
	"Pod":                              pod.Strategy,
	"Namespace":                        namespace.Strategy,
	"DaemonSet":                        daemonset.Strategy,
	"RuntimeClass":                     runtimeclass.Strategy,
	"ValidatingAdmissionPolicy":        validatingadmissionpolicy.NewStrategy(nil, nil),
	"ValidatingAdmissionPolicyBinding": validatingadmissionpolicybinding.NewStrategy(nil, nil, nil),
}

// create returns the object as it would be stored: of the internal version, with
// defaults, and valid.
func create(ctx context.Context, object runtime.Object) (runtime.Object, error) {
	kind := object.GetObjectKind().GroupVersionKind()
	strategy, ok := strategies[kind.Kind]
	if !ok {
		return nil, fmt.Errorf("%s is not known here", kind)
	}
	internal, err := convert(object)
	if err != nil {
		return nil, err
	}
	accessor, err := meta.Accessor(internal)
	if err != nil {
		return nil, err
	}
	ns := metav1.NamespaceNone
	if strategy.NamespaceScoped() {
		if ns = accessor.GetNamespace(); ns == "" {
			ns = metav1.NamespaceDefault
		}
	}
	ctx = request.WithUser(request.WithNamespace(ctx, ns), &user.DefaultInfo{Name: "somebody"})
	rest.WipeObjectMetaSystemFields(accessor)
	rest.FillObjectMetaSystemFields(accessor)
	return internal, rest.BeforeCreate(strategy, ctx, internal)
}

func convert(object runtime.Object) (runtime.Object, error) {
	legacyscheme.Scheme.Default(object)
	return legacyscheme.Scheme.UnsafeConvertToVersion(object, runtime.InternalGroupVersioner)
}

// lines are the errors of an error.
func lines(err error) (all []string) {
	var status *apierrors.StatusError
	switch {
	case err == nil:
	case errors.As(err, &status) && status.ErrStatus.Details != nil && len(status.ErrStatus.Details.Causes) > 0:
		for _, cause := range status.ErrStatus.Details.Causes {
			all = append(all, oneLine(cause.Field+": "+cause.Message))
		}
	default:
		all = append(all, oneLine(err.Error()))
	}
	return all
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// recorder has the warnings that a client would be shown.
type recorder struct{ all []string }

func (r *recorder) AddWarning(_, text string) { r.all = append(r.all, "warning: "+oneLine(text)) }

// ask prints what the API server's plug-in says of each pod on standard input, with
// the policies and bindings of a file in force.
func ask(policy string, update bool) error {
	// As the plug-in's informers have them.
	objects := []runtime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceDefault}}}
	f, err := os.Open(policy)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := documents(f, func(text []byte) error {
		object, err := decode(text)
		if err != nil {
			return err
		}
		internal, err := create(context.Background(), object)
		if err != nil {
			return err
		}
		stored, err := legacyscheme.Scheme.ConvertToVersion(internal, policies.SchemeGroupVersion)
		objects = append(objects, stored)
		return err
	}); err != nil {
		return fmt.Errorf("%s: %w", policy, err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := fake.NewClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	plugin := validating.NewPlugin(nil)
	initializer.New(client, dynamic.NewSimpleDynamicClient(runtime.NewScheme()), factory,
		authorizerfactory.NewAlwaysDenyAuthorizer(), utilfeature.DefaultFeatureGate, ctx.Done(),
		meta.NewDefaultRESTMapper(nil)).Initialize(plugin)
	if err := plugin.ValidateInitialization(); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	return documents(os.Stdin, func(text []byte) error {
		object, err := decode(text)
		if err != nil {
			return err
		}
		var internal, old runtime.Object
		operation, options := admission.Create, runtime.Object(&metav1.CreateOptions{})
		if update {
			operation, options = admission.Update, &metav1.UpdateOptions{}
			if internal, err = convert(object); err == nil {
				old = internal.DeepCopyObject()
			}
		} else {
			internal, err = create(ctx, object)
		}
		if err != nil {
			return err
		}
		p, ok := internal.(*core.Pod)
		if !ok {
			return fmt.Errorf("%T is no pod", internal)
		}
		err = plugin.Validate(ctx, admission.NewAttributesRecord(p, old,
			schema.GroupVersionKind{Version: "v1", Kind: "Pod"},
			metav1.NamespaceDefault, p.Name, schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "",
			operation, options, false, &user.DefaultInfo{Name: "somebody"}),
			admission.NewObjectInterfacesFromScheme(legacyscheme.Scheme))
		if err != nil {
			fmt.Printf("denied: %s\n", oneLine(err.Error()))
			return nil
		}
		fmt.Println("allowed")
		return nil
	})
}
