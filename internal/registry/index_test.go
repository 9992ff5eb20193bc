package registry

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"

	"github.com/hibernate-go/hibernate/internal/store"
)

// TestIndexIsAMap: it holds what a map holds, whatever is added and removed.
func TestIndexIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x index
		want := map[store.ID]*Object{}
		for _, k := range rapid.SliceOfN(rapid.Uint32Range(0, 60), 0, 400).Draw(t, "keys") {
			var id store.ID
			binary.BigEndian.PutUint32(id[:], k)
			if want[id] == nil {
				o := &Object{id: id}
				x.add(o)
				want[id] = o
			} else {
				x.remove(id)
				delete(want, id)
			}
			x.remove(store.ID{31: 1}) // never in
			n := 0
			for o := range x.all() {
				if want[o.id] != o {
					t.Fatalf("%x is in the index", o.id)
				}
				n++
			}
			if n != len(want) || n != x.n {
				t.Fatalf("%d objects, counted %d, want %d", n, x.n, len(want))
			}
			for id, o := range want {
				if x.find(id) != o {
					t.Fatalf("%x is not found", id)
				}
			}
			if x.find(id) != want[id] {
				t.Fatalf("%x is found after its removal", id)
			}
		}
	})
}
