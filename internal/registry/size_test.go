package registry

import (
	"testing"
	"unsafe"
)

// TestObjectIsSmall: an object at rest is one Object, and there may be millions. A
// Turn is the one allocation of a message.
func TestObjectIsSmall(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("sizes are of 64-bit systems")
	}
	if size := unsafe.Sizeof(Object{}); size > 112 {
		t.Errorf("an Object has %d bytes, which is over a size class of 112", size)
	}
	if size := unsafe.Sizeof(Turn{}); size > 96 {
		t.Errorf("a Turn has %d bytes, which is over 96", size)
	}
}
