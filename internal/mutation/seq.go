//go:build mutate_seq

package mutation

const current = "seq"
