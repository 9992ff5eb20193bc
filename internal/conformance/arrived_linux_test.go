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

// arrived reports whether the kernel has something for the client's reader.
func (c *client) arrived() bool {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return false
	}
	var queued int
	var info *unix.TCPInfo
	closed := raw.Control(func(fd uintptr) {
		if queued, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		}
	})
	if closed != nil {
		return true // by the scenario; the reader will see it
	}
	return err != nil || queued > 0 || info.State >= tcpTimeWait && info.State <= tcpLastAck
}
