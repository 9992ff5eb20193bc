//go:build unix

package protocol

import (
	"os"
	"syscall"
)

var free os.Signal = syscall.SIGUSR1
