//go:build !unix

package protocol

import "os"

var free os.Signal
