package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate"
)

const (
	maxHistory  = 100
	maxName     = 24   // characters
	maxText     = 2000 // characters
	maxClientID = 64   // bytes
)

// A Room is one chat room while it is in memory: one event runs at a time, so it needs no lock.
// It is dropped when nothing happens for a while. What outlives it is in two places: the
// history in storage, and who is at the other end of each connection in that connection's attachment.
type Room struct {
	state   *hibernate.State
	history []Line // the last maxHistory lines, oldest first, as in storage
}

// A Member is the attachment of a connection that has said hello.
type Member struct {
	Name   string `json:"name"`
	Colour int    `json:"colour"` // hue in degrees
}

// A Line is one message as it is stored and as everyone sees it.
type Line struct {
	Member
	Seq      uint64    `json:"seq"`
	ClientID string    `json:"cid"` // the sender's own mark, so that its copy acknowledges the message
	Text     string    `json:"text"`
	At       time.Time `json:"at"`
}

// An input is what a client sends: hello with a Member, then say with a ClientID and a Text.
type input struct {
	Type string `json:"type"`
	Member
	ClientID string `json:"cid"`
	Text     string `json:"text"`
}

// An output is what a client gets.
type output struct {
	Type     string   `json:"type"`              // welcome, line, joined, left or error
	Members  []Member `json:"members,omitempty"` // welcome
	History  []Line   `json:"history,omitempty"` // welcome
	Line     *Line    `json:"line,omitempty"`    // line
	Member   *Member  `json:"member,omitempty"`  // joined, left
	ClientID string   `json:"cid,omitempty"`     // error: the message that was refused, if it was one
	Text     string   `json:"text,omitempty"`    // error
}

// NewRoom constructs a room before its first event, and again each time an event wakes it.
func NewRoom(ctx context.Context, s *hibernate.State) (*Room, error) {
	r := &Room{state: s}
	for e, err := range hibernate.List[Line](ctx, s.Storage(), hibernate.Prefix("line/")) {
		if err != nil {
			return nil, err
		}
		r.history = append(r.history, e.Value)
	}
	// Answered while the room sleeps on.
	return r, s.SetWebSocketAutoResponse(ctx, hibernate.AutoResponse{Request: "ping", Response: "pong"})
}

// WebSocketMessage takes hello or say. What is wrong with it is told to its sender alone.
func (r *Room) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	member, joined, err := hibernate.Attachment[Member](ws)
	if err != nil {
		return err
	}
	var in input
	if m.Kind != hibernate.TextMessage || json.Unmarshal(m.Data, &in) != nil {
		return r.refuse(ctx, ws, "", "A message must be a JSON object.")
	}
	switch {
	case in.Type == "hello" && !joined:
		return r.join(ctx, ws, in.Member)
	case in.Type == "say" && joined:
		return r.say(ctx, ws, member, in)
	default:
		return r.refuse(ctx, ws, in.ClientID, fmt.Sprintf("The room did not expect %.20q now: say hello once, then talk.", in.Type))
	}
}

func (r *Room) join(ctx context.Context, ws hibernate.WebSocket, m Member) error {
	m.Name = strings.TrimSpace(m.Name)
	m.Colour = (m.Colour%360 + 360) % 360
	if n := utf8.RuneCountInString(m.Name); n < 1 || n > maxName {
		return r.refuse(ctx, ws, "", fmt.Sprintf("A name has 1 to %d characters; this one has %d.", maxName, n))
	}
	if strings.ContainsFunc(m.Name, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return r.refuse(ctx, ws, "", "A name must consist of characters that can be seen.")
	}
	if err := ws.SerializeAttachment(ctx, m); err != nil {
		return err
	}
	members, err := r.members()
	if err != nil {
		return err
	}
	if err := r.send(ctx, ws, output{Type: "welcome", Members: members, History: r.history}); err != nil {
		return err
	}
	return r.broadcast(ctx, output{Type: "joined", Member: &m}, ws)
}

// say stores the message and shows it to everyone. The sender takes its copy as the
// acknowledgement, and may: what a room sends leaves only when everything it wrote before is on disk.
func (r *Room) say(ctx context.Context, ws hibernate.WebSocket, from Member, in input) error {
	text := strings.TrimSpace(in.Text)
	switch n := utf8.RuneCountInString(text); {
	case in.ClientID == "" || len(in.ClientID) > maxClientID:
		return r.refuse(ctx, ws, "", fmt.Sprintf("A message needs a cid of 1 to %d bytes.", maxClientID))
	case n == 0:
		return r.refuse(ctx, ws, in.ClientID, "The message is empty.")
	case n > maxText:
		return r.refuse(ctx, ws, in.ClientID, fmt.Sprintf("A message has at most %d characters; this one has %d.", maxText, n))
	}
	line := Line{Member: from, Seq: 1, ClientID: in.ClientID, Text: text, At: time.Now().UTC()}
	for _, old := range r.history {
		if old.ClientID == in.ClientID { // sent again by a client that lost its connection before the answer
			return r.send(ctx, ws, output{Type: "line", Line: &old})
		}
		line.Seq = old.Seq + 1
	}
	if err := hibernate.Put(ctx, r.state.Storage(), line.key(), line); err != nil {
		return err
	}
	r.history = append(r.history, line)
	if len(r.history) > maxHistory {
		if _, err := r.state.Storage().Delete(ctx, r.history[0].key()); err != nil {
			return err
		}
		r.history = r.history[1:]
	}
	return r.broadcast(ctx, output{Type: "line", Line: &line})
}

// WebSocketClose tells the others. A sleeping room is woken for it, and still knows who left.
func (r *Room) WebSocketClose(ctx context.Context, ws hibernate.WebSocket, _ hibernate.CloseEvent) error {
	member, joined, err := hibernate.Attachment[Member](ws)
	if err != nil || !joined {
		return err
	}
	return r.broadcast(ctx, output{Type: "left", Member: &member}, ws)
}

// WebSocketError comes instead of WebSocketClose when a client broke the protocol.
func (r *Room) WebSocketError(ctx context.Context, ws hibernate.WebSocket, _ error) error {
	return r.WebSocketClose(ctx, ws, hibernate.CloseEvent{})
}

// members returns who is here, the one who came last at the end.
func (r *Room) members() ([]Member, error) {
	var here []Member
	for _, ws := range r.state.WebSockets() {
		m, joined, err := hibernate.Attachment[Member](ws)
		if err != nil {
			return nil, err
		}
		if joined && ws.ReadyState() == hibernate.StateOpen {
			here = append(here, m)
		}
	}
	slices.Reverse(here) // WebSockets gives the newest first
	return here, nil
}

func (r *Room) refuse(ctx context.Context, ws hibernate.WebSocket, cid, why string) error {
	return r.send(ctx, ws, output{Type: "error", ClientID: cid, Text: why})
}

func (r *Room) send(ctx context.Context, ws hibernate.WebSocket, o output) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return ws.SendText(ctx, string(b))
}

func (r *Room) broadcast(ctx context.Context, o output, except ...hibernate.WebSocket) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = r.state.Broadcast(ctx, hibernate.Text(string(b)), &hibernate.BroadcastOptions{Except: except})
	return err
}

// key orders lines by their number.
func (l Line) key() string { return fmt.Sprintf("line/%020d", l.Seq) }
