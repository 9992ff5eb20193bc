//go:build linux

// Table measures the library beside its peers and prints the outcome as Markdown:
//
//	go run ./internal/bench/table -quick                       # a first look
//	go run ./internal/bench/table -write docs/benchmarks.md    # everything, into the document
//	go run ./internal/bench/table -servers floor,hibernate,gnet -figures echo,echo-16
//	go run ./internal/bench/table -o runs.jsonl; go run ./internal/bench/table runs.jsonl
//
// It builds the library's server, the peers' servers and the load generator into a temporary directory. Each run is a
// server process of its own and a client process of its own, over loopback, one after the other: in every round each
// figure is taken of all servers before the next figure. It needs 20,000 descriptors for a process, and a machine with
// nothing else to do.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hibernate-go/hibernate/internal/bench/launch"
)

func init() { runtime.LockOSThread() } // package launch wants main's thread, which lives as long as the process

func main() {
	var o options
	flag.BoolVar(&o.quick, "quick", false, "one round, short runs, fewer connections")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds; 0: five, or one with -quick")
	flag.DurationVar(&o.measure, "d", 0, "measured `time` of each run; 0: 4s, or 1s with -quick")
	servers := flag.String("servers", "", "`names` of servers, comma-separated; empty: all")
	names := flag.String("figures", "", "`names` of figures, comma-separated; empty: all")
	output := flag.String("o", "", "also append each run to a `file`, as a line of JSON")
	write := flag.String("write", "", "put the table into a Markdown `file`, between its two comments, instead of printing it")
	list := flag.Bool("list", false, "print the names of servers and figures")
	flag.Func("x", "one more peer: `name=command`, which takes -addr", func(s string) error {
		name, command, ok := strings.Cut(s, "=")
		if !ok || command == "" {
			return fmt.Errorf("want name=command")
		}
		contestants = append(contestants, server{name: name, command: strings.Fields(command)})
		return nil
	})
	flag.Parse()
	if *list {
		for _, s := range contestants {
			fmt.Println("server", s.name)
		}
		for _, f := range figures {
			fmt.Println("figure", f.name, "-", f.title)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := o.choose(*servers, *names)
	var d *data
	if err == nil {
		if flag.NArg() > 0 {
			d, err = readFiles(flag.Args())
		} else {
			d, err = measure(ctx, &o, *output)
		}
	}
	if err == nil {
		err = publish(d, *write)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

// options are what is to be measured.
type options struct {
	quick   bool
	rounds  int
	measure time.Duration
	servers []server
	figures []figure
}

// choose takes comma-separated names of servers and figures.
func (o *options) choose(servers, names string) error {
	if o.rounds < 1 {
		o.rounds = 5
		if o.quick {
			o.rounds = 1
		}
	}
	if o.measure <= 0 {
		o.measure = 4 * time.Second
		if o.quick {
			o.measure = time.Second
		}
	}
	var err error
	if o.servers, err = pick(servers, contestants, func(s server) string { return s.name }); err != nil {
		return err
	}
	o.figures, err = pick(names, figures, func(f figure) string { return f.name })
	return err
}

// pick are those of all that are named, in their order; of no name, all.
func pick[T any](names string, all []T, name func(T) string) ([]T, error) {
	if names == "" {
		return all, nil
	}
	wanted := strings.Split(names, ",")
	var picked []T
	for _, x := range all {
		if i := slices.Index(wanted, name(x)); i >= 0 {
			picked = append(picked, x)
			wanted = slices.Delete(wanted, i, i+1)
		}
	}
	if len(wanted) > 0 {
		return nil, fmt.Errorf("there is no %s; -list tells what there is", strings.Join(wanted, ", "))
	}
	return picked, nil
}

// measure runs everything that o asks for.
func measure(ctx context.Context, o *options, output string) (*data, error) {
	root, err := launch.Root(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hibernate-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	progress("building")
	if err := launch.Build(ctx, root, dir, "./internal/bench/server", "./internal/bench/load"); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(o.servers, func(s server) bool { return !s.ours }) {
		if err := launch.Build(ctx, filepath.Join(root, "internal/bench/peers"), dir, "./..."); err != nil {
			return nil, err
		}
	}
	d := &data{About: originOf(ctx, root, o)}
	sink, err := newSink(output)
	if err != nil {
		return nil, err
	}
	defer sink.close()
	if err := sink.put(d); err != nil {
		return nil, err
	}
	for round := range o.rounds {
		for _, f := range o.figures {
			order := f.servers(o.servers)
			if round%2 == 1 { // who comes after whom is not always the same
				slices.Reverse(order)
			}
			for _, s := range order {
				r := one(ctx, o, dir, f, s)
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				r.Round = round
				progress("%d/%d %-12s %-16s %s", round+1, o.rounds, f.name, s.name, f.brief(r))
				d.runs = append(d.runs, r)
				if err := sink.put(r); err != nil {
					return nil, err
				}
			}
		}
	}
	return d, nil
}

// patience is how long one run may take.
const patience = 5 * time.Minute

// one measures one figure of one server.
func one(ctx context.Context, o *options, dir string, f figure, s server) run {
	r := run{Figure: f.name, Server: s.name}
	fail := func(err error) run {
		r.Err = err.Error()
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	program, args := s.at(dir)
	if s.storage {
		storage, err := os.MkdirTemp(dir, "storage")
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(storage)
		args = append(args, "-dir", storage)
	}
	proc, err := launch.Start(ctx, program, args...)
	if err != nil {
		return fail(err)
	}
	defer proc.Stop()
	out, err := launch.Output(ctx, filepath.Join(dir, "load"), f.arguments(o, s, proc)...)
	if err != nil {
		if log := proc.Log(); log != "" {
			err = fmt.Errorf("%w; the server says: %s", err, log)
		}
		return fail(err)
	}
	if err := r.parse(out); err != nil {
		return fail(err)
	}
	return r
}

func progress(format string, a ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", a...)
}
