// Package site is the server that was there before: a home page, a login, and the middleware that knows
// who is asking. It knows nothing of objects or WebSockets.
package site

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

const cookie = "session"

// A Site is the old server.
type Site struct {
	key []byte // signs the sessions
}

// New returns a site whose sessions are signed with key.
func New(key []byte) *Site { return &Site{key} }

// Home greets whoever asks.
func (s *Site) Home(w http.ResponseWriter, r *http.Request) {
	user := "stranger"
	if name, ok := s.session(r); ok {
		user = name
	}
	fmt.Fprintf(w, "Good morning, %s.\n", user)
}

// Login begins a session for the user that the form names. A site in earnest asks for more than a name.
func (s *Site) Login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	user := r.PostFormValue("user")
	if n := len(user); n < 1 || n > 40 || strings.ContainsAny(user, ".;\"\\\r\n") {
		http.Error(w, "A user has a name of 1 to 40 bytes.", http.StatusBadRequest)
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookie, Value: user + "." + s.sign(user), Path: "/",
		HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https",
	})
	w.WriteHeader(http.StatusNoContent)
}

func (s *Site) sign(user string) string {
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(user))
	return hex.EncodeToString(mac.Sum(nil))
}

// session is the user whose session the request's cookie is.
func (s *Site) session(r *http.Request) (user string, ok bool) {
	c, err := r.Cookie(cookie)
	if err != nil {
		return "", false
	}
	user, signature, _ := strings.Cut(c.Value, ".")
	return user, hmac.Equal([]byte(signature), []byte(s.sign(user)))
}

// Authenticated answers 401 to a request without a session, and lets others pass with their user in the context.
func (s *Site) Authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, ok := s.session(r)
		if !ok {
			http.Error(w, "Log in first.", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, user)))
	})
}

type userKey struct{}

// User is the user whom [Site.Authenticated] has found.
func User(ctx context.Context) string {
	user, _ := ctx.Value(userKey{}).(string)
	return user
}

// Logged logs each request with its status.
func Logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &recorder{ResponseWriter: w}
		next.ServeHTTP(rec, r)
		slog.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "took", time.Since(began))
	})
}

// A recorder remembers the status. It can be unwrapped, as every ResponseWriter that wraps another should be:
// a connection is taken over through it. The 101 of an upgrade does not pass here.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
