//go:build mutate_commit

package mutation

const current = "commit"
