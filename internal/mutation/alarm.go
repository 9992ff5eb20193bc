//go:build mutate_alarm

package mutation

const current = "alarm"
