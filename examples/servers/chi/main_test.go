package main

import (
	"net/http"
	"testing"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/examples/servers/servertest"
)

// TestSessionsDecideWhoEnters a room, behind chi's middleware.
func TestSessionsDecideWhoEnters(t *testing.T) {
	servertest.Check(t, func(rt *hibernate.Runtime) (http.Handler, error) { return routes(rt, "a key") })
}
