package socket

import (
	"testing"
	"unsafe"
)

// TestSocketIsSmall: a connection at rest is one Socket, and there may be millions.
func TestSocketIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Socket{}); unsafe.Sizeof(uintptr(0)) == 8 && size > 112 {
		t.Errorf("a Socket has %d bytes, which is over a size class of 112", size)
	}
	if size := unsafe.Sizeof(marks{}); unsafe.Sizeof(uintptr(0)) == 8 && size > 32 {
		t.Errorf("marks have %d bytes, which is over a size class of 32", size)
	}
}

// TestEqualTagsShareMemory: as long as they are among the recent ones.
func TestEqualTagsShareMemory(t *testing.T) {
	var r RecentTags
	a := r.share(NewTags([]string{"room", "red"}))
	b := r.share(NewTags([]string{"room", "red"}))
	if unsafe.StringData(a.list) != unsafe.StringData(b.list) {
		t.Error("two equal lists")
	}
	if c := r.share(NewTags([]string{"roomred"})); c == a {
		t.Error("different lists are equal")
	}
}
