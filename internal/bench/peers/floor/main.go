//go:build linux

// Floor is no library and no peer but the limit for a Go server: raw accept4, epoll, read and write on descriptors that
// the runtime never sees, 12 bytes for each connection, unmasking in place, one buffer per loop. It has no timers,
// limits, objects or storage, and believes whatever a client sends. Ratios refer to it.
package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"log"
	"net/netip"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/hibernate-go/hibernate/internal/bench/peers/protocol"
)

// A slot is a connection, at the index of its descriptor.
type slot struct {
	room int32 // in rooms
	at   int32 // in the room's fds
	up   bool
}

type room struct {
	name string
	fds  []int32
}

// All of it belongs to the one loop.
var (
	slots [20000]slot
	rooms []room
	ids   = map[string]int32{}
	free  []int32 // rooms without a member

	epfd int
	in   = make([]byte, 128<<10)
	out  = make([]byte, 0, 128<<10)
	part = map[int32][]byte{} // what was read of requests and frames that have not come whole
)

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func ok(err error) { must(0, err) }

func main() {
	addr := must(netip.ParseAddrPort(protocol.Start()))
	ln := must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0))
	ok(syscall.SetsockoptInt(ln, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	ok(syscall.SetsockoptInt(ln, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)) // accepted sockets inherit it
	ok(syscall.Bind(ln, &syscall.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}))
	ok(syscall.Listen(ln, 4096))
	epfd = must(syscall.EpollCreate1(syscall.EPOLL_CLOEXEC))
	watch := func(fd int) error {
		return syscall.EpollCtl(epfd, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)})
	}
	ok(watch(ln))
	runtime.LockOSThread()
	events := make([]syscall.EpollEvent, 256)
	for {
		for _, event := range events[:wait(events)] {
			if int(event.Fd) != ln {
				ready(event.Fd)
				continue
			}
			for {
				fd, _, err := syscall.Accept4(ln, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
				if err != nil {
					break
				}
				if fd >= len(slots) || watch(fd) != nil {
					syscall.Close(fd)
				}
			}
		}
	}
}

// wait first looks without telling the scheduler, and only then blocks.
func wait(events []syscall.EpollEvent) int {
	n, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if e == 0 && n > 0 {
		return int(n)
	}
	for {
		n, err := syscall.EpollWait(epfd, events, -1)
		if err != syscall.EINTR {
			return must(n, err)
		}
	}
}

func write(fd int32, p []byte) bool {
	for len(p) > 0 {
		n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		if e == syscall.EAGAIN {
			runtime.Gosched()
			continue
		}
		if e != 0 {
			return false
		}
		p = p[n:]
	}
	return true
}

// ready answers what one read gives.
func ready(fd int32) {
	have := 0
	if len(part) > 0 {
		have = copy(in, part[fd])
		delete(part, fd)
	}
	n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&in[have])), uintptr(len(in)-have))
	if e == syscall.EAGAIN {
		return
	}
	if e != 0 || n == 0 {
		drop(fd)
		return
	}
	b := in[:have+int(n)]
	if !slots[fd].up {
		end := bytes.Index(b, []byte("\r\n\r\n")) + 4
		if end < 4 {
			part[fd] = bytes.Clone(b)
			return
		}
		if !upgrade(fd, b[:end]) {
			drop(fd)
			return
		}
		b = b[end:]
	}
	out = out[:0]
	for {
		f, whole := protocol.Parse(b)
		if !whole {
			break
		}
		last := f.Size == len(b)
		switch {
		case f.Op == 8:
			drop(fd)
			return
		case f.Op > 8:
		case protocol.IsBroadcast(f.Payload):
			frame := protocol.AppendFrame(nil, f.Op, f.Payload)
			for _, to := range rooms[slots[fd].room].fds {
				write(to, frame)
			}
		case last && len(out) == 0 && len(f.Payload) < 1<<16:
			// The only one: its header is written before the payload where it is, over the mask.
			head := f.Size - len(f.Payload) - 2
			if len(f.Payload) < 126 {
				b[head+1] = byte(len(f.Payload))
			} else {
				head -= 2
				b[head+1] = 126
				binary.BigEndian.PutUint16(b[head+2:], uint16(len(f.Payload)))
			}
			b[head] = 0x80 | f.Op
			write(fd, b[head:])
			return
		default:
			out = protocol.AppendFrame(out, f.Op, f.Payload)
		}
		b = b[f.Size:]
	}
	if len(out) > 0 && !write(fd, out) {
		drop(fd)
		return
	}
	if len(b) > 0 {
		part[fd] = bytes.Clone(b)
	}
}

func upgrade(fd int32, request []byte) bool {
	path, isGet := bytes.CutPrefix(request, []byte("GET "))
	_, key, hasKey := bytes.Cut(request, []byte("Sec-WebSocket-Key: "))
	path, _, hasPath := bytes.Cut(path, []byte(" "))
	key, _, _ = bytes.Cut(key, []byte("\r\n"))
	if !isGet || !hasPath || !hasKey || len(key) != 24 {
		return false
	}
	var text [60]byte
	copy(text[:], key)
	copy(text[24:], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
	sum := sha1.Sum(text[:])
	out = append(out[:0], "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	out = base64.StdEncoding.AppendEncode(out, sum[:])
	out = append(out, "\r\n\r\n"...)
	join(fd, bytes.TrimPrefix(path, []byte("/room/")))
	return write(fd, out)
}

func join(fd int32, name []byte) {
	id, known := ids[string(name)]
	if !known {
		if last := len(free) - 1; last >= 0 {
			id, free = free[last], free[:last]
		} else {
			id = int32(len(rooms))
			rooms = append(rooms, room{})
		}
		rooms[id].name = string(name)
		ids[rooms[id].name] = id
	}
	r := &rooms[id]
	slots[fd] = slot{room: id, at: int32(len(r.fds)), up: true}
	r.fds = append(r.fds, fd)
}

func drop(fd int32) {
	if s := slots[fd]; s.up {
		r := &rooms[s.room]
		last := len(r.fds) - 1
		moved := r.fds[last]
		r.fds[s.at], slots[moved].at = moved, s.at
		r.fds = r.fds[:last]
		if last == 0 {
			delete(ids, r.name)
			*r = room{}
			free = append(free, s.room)
		}
		slots[fd] = slot{}
	}
	delete(part, fd)
	syscall.Close(int(fd))
}
