// Package conformance holds the library to transcripts of workerd.
//
// The scenarios in testdata were recorded from real workerd. The package's tests
// play them against the probe server on loopback sockets, with the clock faked:
// the player moves it where a scenario waits, so that hours pass in a moment and
// nothing depends on how fast the machine is.
package conformance
