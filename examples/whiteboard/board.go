package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/hibernate-go/hibernate"
)

// A board is as large on every screen: its points are 0 to width and 0 to height.
const (
	width, height = 1600, 1000

	inks        = 6       // colours of ink; the page knows what they look like
	maxPen      = 32      // the thickest line
	maxID       = 64      // bytes
	maxTrail    = 64      // points of one cursor message
	maxStroke   = 500     // points of one stroke; the page ends a longer one and begins the next
	batchPoints = 4_000   // a batch with as many is full
	maxPoints   = 200_000 // of a board
)

// A Board is one whiteboard while it is in memory: one event runs at a time, so it needs no lock.
// It is dropped when nothing happens for a while. The strokes are in storage, who holds which
// connection is in the attachments; where the cursors are is in memory alone, and may be forgotten.
type Board struct {
	state   *hibernate.State
	batches [][]Stroke          // what is drawn, as in storage
	points  int                 // of all strokes
	known   map[string]struct{} // their IDs

	cursors map[hibernate.WebSocket]position // forgotten with the instance; the next move tells again
}

// A Stroke is one line, from pen down to pen up.
type Stroke struct {
	ID     string  `json:"id"` // the drawer's own mark, so that its copy acknowledges the stroke
	Ink    int     `json:"ink"`
	Pen    int     `json:"pen"`    // how thick
	Points []int16 `json:"points"` // x, y, x, y, …
}

// A Guest is the attachment of a connection. The route makes it, before the board knows of anything.
type Guest struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Hue    int    `json:"hue"`    // degrees
	Joined bool   `json:"joined"` // has said hello
}

type position struct{ x, y int16 }

// An input is what a client sends: hello once, then cursor while the pointer moves, a
// stroke when it is drawn, and clear.
type input struct {
	Type    string  `json:"type"`
	Stroke  Stroke  `json:"stroke"`  // stroke
	Trail   []int16 `json:"trail"`   // cursor: where the pointer was since the last one, x, y, x, y, …
	Drawing bool    `json:"drawing"` // cursor: the trail will be part of a stroke
}

// An output is what a client gets.
type output struct {
	Type    string   `json:"type"`              // welcome, strokes, stroke, cursor, joined, left, cleared or error
	You     string   `json:"you,omitempty"`     // welcome: the client's own Guest.ID
	Guests  []Guest  `json:"guests,omitempty"`  // welcome
	Strokes []Stroke `json:"strokes,omitempty"` // strokes, which follow a welcome
	Stroke  *Stroke  `json:"stroke,omitempty"`  // stroke
	Guest   *Guest   `json:"guest,omitempty"`   // joined, left
	Who     string   `json:"who,omitempty"`     // cursor: a Guest.ID
	Trail   []int16  `json:"trail,omitempty"`   // cursor
	Drawing bool     `json:"drawing,omitempty"` // cursor
	ID      string   `json:"id,omitempty"`      // error: of the stroke that was refused, if it was one
	Text    string   `json:"text,omitempty"`    // error
}

// NewBoard constructs a board before its first event, and again each time an event wakes it.
func NewBoard(ctx context.Context, s *hibernate.State) (*Board, error) {
	b := &Board{state: s, known: map[string]struct{}{}, cursors: map[hibernate.WebSocket]position{}}
	for e, err := range hibernate.List[[]Stroke](ctx, s.Storage(), hibernate.Prefix("batch/")) {
		if err != nil {
			return nil, err
		}
		b.batches = append(b.batches, e.Value)
		for _, stroke := range e.Value {
			b.known[stroke.ID] = struct{}{}
			b.points += len(stroke.Points) / 2
		}
	}
	return b, s.SetWebSocketAutoResponse(ctx, hibernate.AutoResponse{Request: "ping", Response: "pong"})
}

// WebSocketMessage takes one input. What is wrong with it is told to its sender alone.
func (b *Board) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	guest, _, err := hibernate.Attachment[Guest](ws)
	if err != nil {
		return err
	}
	var in input
	if m.Kind != hibernate.TextMessage || json.Unmarshal(m.Data, &in) != nil {
		return b.refuse(ctx, ws, "", "A message must be a JSON object, and its points whole numbers.")
	}
	switch {
	case in.Type == "hello" && !guest.Joined:
		return b.join(ctx, ws, guest)
	case in.Type == "cursor" && guest.Joined:
		return b.move(ctx, ws, guest, in)
	case in.Type == "stroke" && guest.Joined:
		return b.draw(ctx, ws, in.Stroke)
	case in.Type == "clear" && guest.Joined:
		return b.clear(ctx)
	default:
		return b.refuse(ctx, ws, in.Stroke.ID, fmt.Sprintf("The board did not expect %.20q now: say hello once, then draw.", in.Type))
	}
}

// join shows a newcomer the board, batch by batch, and where the cursors are.
func (b *Board) join(ctx context.Context, ws hibernate.WebSocket, guest Guest) error {
	guest.Joined = true
	if err := ws.SerializeAttachment(ctx, guest); err != nil {
		return err
	}
	guests, ids, err := b.guests()
	if err != nil {
		return err
	}
	if err := b.send(ctx, ws, output{Type: "welcome", You: guest.ID, Guests: guests}); err != nil {
		return err
	}
	for _, strokes := range b.batches {
		if err := b.send(ctx, ws, output{Type: "strokes", Strokes: strokes}); err != nil {
			return err
		}
	}
	for other, p := range b.cursors {
		if err := b.send(ctx, ws, output{Type: "cursor", Who: ids[other], Trail: []int16{p.x, p.y}}); err != nil {
			return err
		}
	}
	return b.broadcast(ctx, output{Type: "joined", Guest: &guest}, ws)
}

// move shows everybody else where a pointer went. Nothing of it is stored.
func (b *Board) move(ctx context.Context, ws hibernate.WebSocket, guest Guest, in input) error {
	if n := len(in.Trail); n < 2 || n > 2*maxTrail || !onBoard(in.Trail) {
		return b.refuse(ctx, ws, "", fmt.Sprintf("A trail has 1 to %d points on the board.", maxTrail))
	}
	n := len(in.Trail)
	b.cursors[ws] = position{in.Trail[n-2], in.Trail[n-1]}
	return b.broadcast(ctx, output{Type: "cursor", Who: guest.ID, Trail: in.Trail, Drawing: in.Drawing}, ws)
}

// draw stores the stroke and shows it to everyone. The drawer takes its copy as the
// acknowledgement, and may: what a board sends leaves only when everything it wrote before is on disk.
func (b *Board) draw(ctx context.Context, ws hibernate.WebSocket, s Stroke) error {
	n := len(s.Points) / 2
	switch {
	case s.ID == "" || len(s.ID) > maxID:
		return b.refuse(ctx, ws, "", fmt.Sprintf("A stroke needs an id of 1 to %d bytes.", maxID))
	case n < 1 || n > maxStroke || !onBoard(s.Points):
		return b.refuse(ctx, ws, s.ID, fmt.Sprintf("A stroke has 1 to %d points on the board.", maxStroke))
	case s.Ink < 0 || s.Ink >= inks || s.Pen < 1 || s.Pen > maxPen:
		return b.refuse(ctx, ws, s.ID, fmt.Sprintf("There are inks 0 to %d and pens 1 to %d.", inks-1, maxPen))
	case b.points+n > maxPoints:
		return b.refuse(ctx, ws, s.ID, "The board is full. Clear it to go on.")
	}
	if _, again := b.known[s.ID]; again { // by a client that lost its connection before the answer
		return b.send(ctx, ws, output{Type: "stroke", Stroke: &s})
	}
	if err := b.store(ctx, s); err != nil {
		return err
	}
	return b.broadcast(ctx, output{Type: "stroke", Stroke: &s})
}

// store adds a stroke to the last batch, or begins the next one. A value for each stroke would make a
// wake read thousands of keys; one value for all would be written whole each time.
func (b *Board) store(ctx context.Context, s Stroke) error {
	i := len(b.batches) - 1
	if i < 0 || pointsOf(b.batches[i]) >= batchPoints {
		i++
	}
	var batch []Stroke
	if i < len(b.batches) {
		batch = b.batches[i]
	}
	batch = append(batch, s)
	if err := hibernate.Put(ctx, b.state.Storage(), batchKey(i), batch); err != nil {
		return err
	}
	b.batches = append(b.batches[:i], batch)
	b.points += len(s.Points) / 2
	b.known[s.ID] = struct{}{}
	return nil
}

func (b *Board) clear(ctx context.Context) error {
	keys := make([]string, len(b.batches))
	for i := range keys {
		keys[i] = batchKey(i)
	}
	if _, err := b.state.Storage().Delete(ctx, keys...); err != nil {
		return err
	}
	b.batches, b.points = nil, 0
	clear(b.known)
	return b.broadcast(ctx, output{Type: "cleared"})
}

// WebSocketClose tells the others. A sleeping board is woken for it, and still knows who left.
func (b *Board) WebSocketClose(ctx context.Context, ws hibernate.WebSocket, _ hibernate.CloseEvent) error {
	delete(b.cursors, ws)
	guest, _, err := hibernate.Attachment[Guest](ws)
	if err != nil || !guest.Joined {
		return err
	}
	return b.broadcast(ctx, output{Type: "left", Guest: &guest}, ws)
}

// WebSocketError comes instead of WebSocketClose when a client broke the protocol.
func (b *Board) WebSocketError(ctx context.Context, ws hibernate.WebSocket, _ error) error {
	return b.WebSocketClose(ctx, ws, hibernate.CloseEvent{})
}

// guests returns who is here, the one who came last at the end, and which ID a connection has.
func (b *Board) guests() ([]Guest, map[hibernate.WebSocket]string, error) {
	var here []Guest
	ids := map[hibernate.WebSocket]string{}
	for _, ws := range b.state.WebSockets() {
		g, _, err := hibernate.Attachment[Guest](ws)
		if err != nil {
			return nil, nil, err
		}
		if g.Joined && ws.ReadyState() == hibernate.StateOpen {
			here, ids[ws] = append(here, g), g.ID
		}
	}
	slices.Reverse(here) // WebSockets gives the newest first
	return here, ids, nil
}

func (b *Board) refuse(ctx context.Context, ws hibernate.WebSocket, id, why string) error {
	return b.send(ctx, ws, output{Type: "error", ID: id, Text: why})
}

func (b *Board) send(ctx context.Context, ws hibernate.WebSocket, o output) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return ws.SendText(ctx, string(data))
}

func (b *Board) broadcast(ctx context.Context, o output, except ...hibernate.WebSocket) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = b.state.Broadcast(ctx, hibernate.Text(string(data)), &hibernate.BroadcastOptions{Except: except})
	return err
}

// onBoard reports whether points are pairs on the board.
func onBoard(points []int16) bool {
	for i := 0; i+1 < len(points); i += 2 {
		if x, y := points[i], points[i+1]; x < 0 || x > width || y < 0 || y > height {
			return false
		}
	}
	return len(points)%2 == 0
}

func pointsOf(batch []Stroke) (n int) {
	for _, s := range batch {
		n += len(s.Points) / 2
	}
	return n
}

// batchKey orders batches by their number.
func batchKey(i int) string { return fmt.Sprintf("batch/%08d", i) }
