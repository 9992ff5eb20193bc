package socket

import (
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// TestSocketIsSmall: a connection at rest is one Socket, and there may be millions.
func TestSocketIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Socket{}); unsafe.Sizeof(uintptr(0)) == 8 && size > 96 {
		t.Errorf("a Socket has %d bytes, which is over a size class of 96", size)
	}
}

// TestEqualTagsShareMemory: as long as they are among the recent ones.
func TestEqualTagsShareMemory(t *testing.T) {
	var r RecentTags
	a := r.share(NewTags([]string{"room", "red"}))
	b := r.share(NewTags([]string{"room", "red"}))
	if a != b {
		t.Error("two equal lists")
	}
	if c := r.share(NewTags([]string{"roomred"})); c == a {
		t.Error("different lists are equal")
	}
}

// TestMarksAreWhatWasPutIn, also at the sizes where one of them ends the memory.
func TestMarksAreWhatWasPutIn(t *testing.T) {
	long := strings.Repeat("t", 256)
	for _, tags := range [][]string{nil, {""}, {"a"}, {"a", "b"}, {long, long[1:], long[2:], long[3:], long[4:], long[5:], long[6:], long[7:], long[8:], long[9:]}} {
		for _, attachment := range []string{"", "a", strings.Repeat("x", 26), strings.Repeat("y", 1<<16)} {
			m := newMarks(NewTags(tags), []byte(attachment))
			if got := m.tags().All(); !slices.Equal(got, tags) || m.attachment() != attachment {
				t.Errorf("%d tags became %q, attachment of %d bytes became %.20q", len(tags), got, len(attachment), m.attachment())
			}
		}
	}
}
