// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var update = flag.Bool("update", false, "add the fields that testdata does not have yet")

// kinds are those that etcd holds: all of the scheme but their lists.
func kinds(t *testing.T) map[string]runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	found := map[string]runtime.Object{}
	for kind, of := range scheme.KnownTypes(GroupVersion) {
		object := reflect.New(of).Interface().(runtime.Object)
		if _, stored := object.(metav1.Object); stored && strings.HasPrefix(of.PkgPath(), "github.com/berth-dev/berth/") {
			object.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{Group: GroupVersion.Group, Version: GroupVersion.Version, Kind: kind})
			found[kind] = object
		}
	}
	return found
}

// What was stored once is read for ever: testdata has an object of each kind with every
// field that it has ever had, as etcd holds it. A field that is renamed, taken away or given
// another type would be dropped from the objects that are there, and this test fails, also
// with -update, which only adds.
func TestStoredObjectsAreReadInFull(t *testing.T) {
	t.Parallel()
	all := kinds(t)
	if len(all) == 0 {
		t.Fatal("the scheme has no kinds")
	}
	for kind, object := range all {
		fill(reflect.ValueOf(object).Elem(), strings.ToLower(kind))
		filled := encode(t, object)
		path := filepath.Join("testdata", kind+".json")
		stored, err := os.ReadFile(path)
		if err != nil && !(*update && os.IsNotExist(err)) {
			t.Fatal(err)
		}
		if err == nil {
			read := reflect.New(reflect.TypeOf(object).Elem()).Interface().(runtime.Object)
			strict := json.NewDecoder(bytes.NewReader(stored))
			strict.DisallowUnknownFields()
			if err := strict.Decode(read); err != nil {
				t.Errorf("%s of before: %v: a stored field is never renamed, taken away or given another type (docs/adr/0028-another-version-has-the-same-fields.md)", kind, err)
				continue
			}
			if again := encode(t, read); !bytes.Equal(again, stored) {
				t.Errorf("%s of before is written with other fields (one that was added must be optional):\n%s", kind, again)
			}
			if copied := encode(t, read.DeepCopyObject()); !bytes.Equal(copied, stored) {
				t.Errorf("a copy of %s lacks something:\n%s", kind, copied)
			}
		}
		switch {
		case bytes.Equal(filled, stored):
		case *update:
			if err := os.WriteFile(path, filled, 0o600); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s has other fields than %s: if fields were added, run go test ./api/v1alpha1 -update", kind, path)
		}
	}
}

func encode(t *testing.T, object any) []byte {
	t.Helper()
	data, err := json.MarshalIndent(object, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

// fill gives every field a value that is written: its path, where it is text.
func fill(v reflect.Value, path string) {
	switch v.Interface().(type) {
	case metav1.TypeMeta:
		return // says what it is
	case metav1.ObjectMeta:
		v.FieldByName("Name").SetString(path)
		return
	case metav1.Time:
		v.Set(reflect.ValueOf(metav1.NewTime(time.Unix(1, 0).UTC())))
		return
	case metav1.MicroTime:
		v.Set(reflect.ValueOf(metav1.NewMicroTime(time.Unix(1, 1000).UTC())))
		return
	case metav1.Duration:
		v.Set(reflect.ValueOf(metav1.Duration{Duration: time.Second}))
		return
	case resource.Quantity:
		v.Set(reflect.ValueOf(resource.MustParse("1Gi")))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			fill(v.Field(i), strings.TrimSuffix(path+"."+name, "."))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), path)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), path)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, "key")
		fill(value, path)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(path)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	default:
		panic("a field of kind " + v.Kind().String() + " at " + path + " is not filled")
	}
}
