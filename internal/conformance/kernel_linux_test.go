package conformance

import "golang.org/x/sys/unix"

// States of a connection whose peer will send nothing more, as in the kernel's
// tcp_states.h.
const (
	tcpTimeWait = 6 + iota
	tcpClose
	tcpCloseWait
	tcpLastAck
)

// kernel reports whether the kernel has something for the client's reader, and
// how much it has that the server's kernel did not take.
func (c *client) kernel() (arrived bool, unsent int) {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return true, 0 // closed by the scenario; the reader will see it
	}
	var queued int
	var info *unix.TCPInfo
	closed := raw.Control(func(fd uintptr) {
		if queued, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ); err != nil {
			return
		}
		if unsent, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ); err != nil {
			return
		}
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if closed != nil || err != nil {
		return true, 0
	}
	return queued > 0 || info.State >= tcpTimeWait && info.State <= tcpLastAck, unsent
}
