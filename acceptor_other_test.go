//go:build portable || !linux

package hibernate_test

// acceptor says whether connections wait in epoll.
const acceptor = false

// Without epoll every connection is net/http's.
func (d *doorRig) wasClaimed(n int64) {
	d.t.Helper()
	if got := d.http.Load(); got != n {
		d.t.Errorf("net/http got %d requests, want %d", got, n)
	}
}

// settled has nothing to wait for: connections that wait are net/http's.
func (d *doorRig) settled(int) {}
