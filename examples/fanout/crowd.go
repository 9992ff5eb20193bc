package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gobwas/ws"
)

// gather connects n dashboards to a feed that nobody looks at, and returns when ctx has ended and they have gone.
func gather(ctx context.Context, url string, n int) {
	var begun, connected atomic.Int64
	var dialing, reading sync.WaitGroup
	for range 64 { // at once
		dialing.Go(func() {
			for begun.Add(1) <= int64(n) {
				conn, br, _, err := ws.Dial(ctx, "ws"+strings.TrimPrefix(url, "http"))
				if err != nil {
					if ctx.Err() == nil {
						slog.Warn("the crowd stays smaller", "err", err)
					}
					return
				}
				if br != nil {
					ws.PutReader(br) // what came with the handshake is not looked at either
				}
				connected.Add(1)
				reading.Go(func() {
					defer context.AfterFunc(ctx, func() { conn.Close() })()
					_, _ = io.Copy(io.Discard, conn)
					conn.Close()
				})
			}
		})
	}
	dialing.Wait()
	slog.Info("the crowd is here", "dashboards", connected.Load())
	reading.Wait()
}
