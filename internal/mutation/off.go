//go:build !mutate_gate && !mutate_commit && !mutate_seq && !mutate_alarm && !mutate_fatalf

package mutation

const current = ""
