//go:build mutate_gate

package mutation

const current = "gate"
