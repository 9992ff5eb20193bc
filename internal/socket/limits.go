package socket

import (
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// codeTooBig is the close code for what is over a limit of the decoder.
const codeTooBig = 1009

// overLimit is a violation of the peer's that is also found as a *limit.Error.
type overLimit struct {
	violation *wire.Error
	limit     *limit.Error
}

func (e *overLimit) Error() string { return e.violation.Error() }

func (e *overLimit) Unwrap() []error { return []error{e.violation, e.limit} }

// tooBig counts a message that the decoder has refused.
func (c *Config) tooBig(v *wire.Error) error {
	id := limit.Message
	if v.Fragments {
		id = limit.Fragments
	}
	return &overLimit{v, c.Refused.Refuse(id, v.Max, v.Got)}
}
