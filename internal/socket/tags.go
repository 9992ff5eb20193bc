package socket

// Tags is the immutable list of tags of a socket; nil is the empty list.
type Tags struct {
	list []string
}

// NewTags wraps list, which must not be changed later.
func NewTags(list []string) *Tags {
	if len(list) == 0 {
		return nil
	}
	return &Tags{list}
}

// All are the tags in order. The slice must not be changed.
func (t *Tags) All() []string {
	if t == nil {
		return nil
	}
	return t.list
}

// HasAll reports whether every one of tags is among t.
func (t *Tags) HasAll(tags []string) bool {
next:
	for _, want := range tags {
		for _, have := range t.All() {
			if have == want {
				continue next
			}
		}
		return false
	}
	return true
}
