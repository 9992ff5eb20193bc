package registry

import (
	"testing"

	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }
