//go:build mutate_fatalf

package mutation

const current = "fatalf"
