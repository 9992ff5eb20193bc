package registry

import (
	"hash/maphash"
	"iter"
	"slices"

	"github.com/hibernate-go/hibernate/internal/store"
)

// An index finds objects by id: open addressing with linear probing, at most three
// quarters full. A Go map holds the id beside the pointer, which is five times as
// much. Its lock is the shard's.
type index struct {
	slots []*Object // a power of two, or none
	n     int
	seed  maphash.Seed // ids come from outside
}

const minSlots = 8

// at is where id is, or where it would be put. There must be a free slot.
func (x *index) at(id store.ID) int {
	mask := len(x.slots) - 1
	i := int(maphash.Bytes(x.seed, id[:])) & mask
	for x.slots[i] != nil && x.slots[i].id != id {
		i = (i + 1) & mask
	}
	return i
}

func (x *index) find(id store.ID) *Object {
	if x.n == 0 {
		return nil
	}
	return x.slots[x.at(id)]
}

// add adds o, which must not be in.
func (x *index) add(o *Object) {
	if 4*(x.n+1) > 3*len(x.slots) {
		if x.slots == nil {
			x.seed = maphash.MakeSeed()
		}
		x.resize(max(minSlots, 2*len(x.slots)))
	}
	x.slots[x.at(o.id)] = o
	x.n++
}

// remove takes the object with the given id out, if it is in.
func (x *index) remove(id store.ID) {
	if x.n == 0 {
		return
	}
	hole := x.at(id)
	if x.slots[hole] == nil {
		return
	}
	x.n--
	if len(x.slots) > minSlots && 8*x.n < len(x.slots) {
		x.slots[hole] = nil
		x.resize(len(x.slots) / 2)
		return
	}
	// What follows may be where it is only because the hole was taken.
	mask := len(x.slots) - 1
	for i := (hole + 1) & mask; x.slots[i] != nil; i = (i + 1) & mask {
		home := int(maphash.Bytes(x.seed, x.slots[i].id[:])) & mask
		if (i-home)&mask >= (i-hole)&mask {
			x.slots[hole], hole = x.slots[i], i
		}
	}
	x.slots[hole] = nil
}

func (x *index) resize(n int) {
	old := x.slots
	x.slots = make([]*Object, n)
	for _, o := range old {
		if o != nil {
			x.slots[x.at(o.id)] = o
		}
	}
}

// all yields the objects, in no order. The index must not be changed meanwhile.
func (x *index) all() iter.Seq[*Object] {
	return func(yield func(*Object) bool) {
		for _, o := range x.slots {
			if o != nil && !yield(o) {
				return
			}
		}
	}
}

// list is all as a slice.
func (x *index) list() []*Object { return slices.AppendSeq(make([]*Object, 0, x.n), x.all()) }
