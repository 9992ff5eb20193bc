//go:build linux

package main

import (
	"math"
	"math/bits"
	"time"
)

// A histogram counts times in 64 steps for each power of two, so that a quantile is at most 1.6 % too small.
type histogram struct {
	counts [59 * 64]int64
	n      int64
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.n++
	i := int(d)
	if d >= 64 {
		shift := bits.Len64(uint64(d)) - 7
		i = shift*64 + int(d>>shift)
	}
	h.counts[i]++
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.n += o.n
}

// quantile is the time in microseconds that a share p of all is below.
func (h *histogram) quantile(p float64) float64 {
	seen, want := int64(0), min(int64(p*float64(h.n)), h.n-1)
	for i, n := range h.counts {
		if seen += n; seen > want {
			if i >= 128 {
				shift := i/64 - 1
				i = (i - shift*64) << shift
			}
			return tenth(micros(time.Duration(i)))
		}
	}
	return 0
}

func tenth(x float64) float64      { return math.Round(x*10) / 10 }
func thousandth(x float64) float64 { return math.Round(x*1000) / 1000 }
