//go:build linux

package main

import (
	"path/filepath"
	"slices"
	"strings"
)

// A server is what can be measured.
type server struct {
	name    string
	command []string // a program that was built, unless it is a path, and its flags
	ours    bool
	extra   bool // measured only for figures that name it
	storage bool // wants -dir
}

const (
	floor = "floor"     // the base of all ratios
	ours  = "hibernate" // through the acceptor
)

// asleep is the library's server with a short way to sleep.
func asleep(flags ...string) []string { return append([]string{"server", "-idle", "1s"}, flags...) }

var contestants = []server{
	{name: floor, command: []string{"floor"}},
	{name: ours, command: asleep(), ours: true},
	{name: "hibernate-http", command: asleep("-door", "http"), ours: true, extra: true},
	{name: "hibernate-dir", command: asleep(), ours: true, extra: true, storage: true},
	{name: "gnet", command: []string{"gnet"}},
	{name: "gobwas-raw", command: []string{"gobwas-epoll", "-raw"}},
	{name: "gobwas-epoll", command: []string{"gobwas-epoll"}},
	{name: "gobwas-goroutine", command: []string{"gobwas-goroutine"}},
	{name: "gws", command: []string{"gws"}},
	{name: "gorilla", command: []string{"gorilla"}},
	{name: "coder", command: []string{"coder"}},
	{name: "melody", command: []string{"melody"}},
}

// at is the program and its arguments, for programs built into dir.
func (s server) at(dir string) (program string, args []string) {
	program = s.command[0]
	if !strings.ContainsRune(program, filepath.Separator) {
		program = filepath.Join(dir, program)
	}
	return program, slices.Clone(s.command[1:])
}

// isPeer reports whether a name in stored runs is that of a peer.
func isPeer(name string) bool {
	return name != floor && !strings.HasPrefix(name, ours)
}
