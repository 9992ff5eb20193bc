//go:build !portable

package poll

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The descriptors do not block. So the scheduler need not hear of these calls: telling it costs a tenth of a short one, and
// it takes the processor away from a goroutine that seems to be away for long.

// maxRaw is the size of a write that is worth telling.
const maxRaw = 32 << 10

func read(fd int32, p []byte) (int, unix.Errno) {
	n, _, err := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), err
}

func write(fd int32, p []byte) (n int, err unix.Errno) {
	var r uintptr
	if len(p) <= maxRaw {
		r, _, err = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	} else {
		r, _, err = unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	}
	return int(r), err
}

// epollWait fetches events that are there, or come within timeout milliseconds; -1 is for ever. The scheduler hears of a wait.
func epollWait(epfd uintptr, events []unix.EpollEvent, timeout int) (int, unix.Errno) {
	var n uintptr
	var err unix.Errno
	if timeout == 0 {
		n, _, err = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, epfd, uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	} else {
		n, _, err = unix.Syscall6(unix.SYS_EPOLL_PWAIT, epfd, uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout), 0, 0)
	}
	if err != 0 {
		return 0, err
	}
	return int(n), 0
}
