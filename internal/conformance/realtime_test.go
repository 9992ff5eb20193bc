package conformance

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// realIdle is after how long an object of a probe process hibernates, realWait how
// long the player waits for it. Pauses inside scenarios are shorter.
const (
	realIdle = 5 * time.Second
	realWait = wait(6 * time.Second)
)

// A process is a probe that runs as a program of its own.
type process struct {
	path, dir string
	cmd       *exec.Cmd
	at        string       // where it listens
	stderr    bytes.Buffer // complete once it has ended
}

// startProbe runs the program on the storage in dir.
func startProbe(path, dir string) (*process, error) {
	r := &process{path: path, dir: dir}
	r.cmd = exec.Command(path, "-port", "0", "-data", dir, "-idle", realIdle.String())
	r.cmd.Stderr = &r.stderr
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		r.kill()
		return nil, fmt.Errorf("probe does not tell its address: %w; %s", err, &r.stderr)
	}
	r.at = strings.TrimSpace(line)
	return r, nil
}

// kill ends the process without warning (SIGKILL) and waits for its end.
func (r *process) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // "signal: killed", as was asked for
}

// A realStage is a probe in another process, and the time of the world.
type realStage struct {
	p     *player
	probe *process
	own   bool // probe is this player's alone
}

func (r *realStage) addr() string { return r.probe.at }

func (r *realStage) stop() {
	if r.own {
		r.probe.kill()
	}
}

// tick and settle do nothing: time passes, and from outside rest cannot be told.
func (r *realStage) tick()   {}
func (r *realStage) settle() {}

func (r *realStage) until(within time.Duration, ok func() bool) bool {
	end := time.Now().Add(within)
	for pause := time.Millisecond; ; pause = min(2*pause, 25*time.Millisecond) {
		if ok() {
			return true
		}
		left := time.Until(end)
		if left <= 0 {
			return false
		}
		time.Sleep(min(pause, left)) // looks again: the other process announces nothing
	}
}

func (r *realStage) inside(method, path string, body any) []byte {
	q, err := http.NewRequest(method, "http://"+r.addr()+"/"+r.p.name+path, strings.NewReader(text(body)))
	if err != nil {
		panic("BUG: " + err.Error())
	}
	resp, err := r.p.http.Do(q)
	if err == nil {
		defer resp.Body.Close()
		var b []byte
		if b, err = io.ReadAll(resp.Body); err == nil {
			return b
		}
	}
	r.p.t.Errorf("%s: %v", r.p.name, err)
	return []byte("[]")
}

func (r *realStage) restart(down time.Duration) error {
	r.probe.kill()
	for _, c := range r.p.clients {
		<-c.ended // by the death of the server
	}
	time.Sleep(down) // it stays down for so long
	next, err := startProbe(r.probe.path, r.probe.dir)
	if err != nil {
		return err
	}
	r.probe = next
	return nil
}

// TestScenariosEndAsInWorkerdInRealTime plays the scenarios in real time against the
// probe as a process, which those that restart it kill. All are played at once, so
// that their waits overlap.
func TestScenariosEndAsInWorkerdInRealTime(t *testing.T) {
	if os.Getenv("HIBERNATE_REALTIME") != "1" {
		t.Skip("takes half a minute of waiting: set HIBERNATE_REALTIME=1 to play it")
	}
	path := filepath.Join(t.TempDir(), "probe.exe")
	if out, err := exec.Command("go", "build", "-o", path, "./probe").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	shared, err := startProbe(path, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	scenarios := loadScenarios(t)
	outcomes, errs := make([][]any, len(scenarios)), make([]error, len(scenarios))
	for i, sc := range scenarios {
		all.Go(func() {
			time.Sleep(time.Duration(i) * 25 * time.Millisecond) // not all in the same moment
			r := &realStage{p: newPlayer(t, sc, realWait), probe: shared}
			if r.p.stage = r; sc.Restarts {
				r.own = true
				if r.probe, errs[i] = startProbe(path, t.TempDir()); errs[i] != nil {
					return
				}
			}
			outcomes[i], errs[i] = r.p.play(sc)
		})
	}
	all.Wait()
	shared.kill()
	if said := shared.stderr.String(); said != "" {
		t.Errorf("the probe said:\n%s", said)
	}
	for i, sc := range scenarios {
		t.Run(sc.Name, func(t *testing.T) { check(t, sc, outcomes[i], errs[i]) })
	}
}
