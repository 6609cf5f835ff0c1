// Package broker is the embedded Kafka of standalone: kfake with its data on
// disk, for a first look and for tests. It adds what kfake lacks to keep what it
// acknowledged over a SIGKILL: before kfake reads the folder, repair mends what
// the kill left half done (repair.go), and compaction, which happens at each
// start and at no other time, can be taken back until it is whole (compact.go).
//
// kfake runs one goroutine for its state and two a connection; Close ends them.
package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Config says where a broker keeps its data and whom it serves.
type Config struct {
	// Dir holds everything the broker keeps. The caller sees to it that no other
	// process uses it.
	Dir string
	// Listener takes connections; the broker closes it.
	Listener net.Listener
	// Advertised is the host that clients are told to connect to; empty means the
	// listener's.
	Advertised string
	Log        *slog.Logger
}

// Broker is a running broker.
type Broker struct {
	folder  string
	cluster *kfake.Cluster
	address string
}

// Start brings the folder in order, compacts it, and serves. It blocks until
// clients may connect.
func Start(cfg Config) (*Broker, error) {
	door := newDoor(cfg.Listener, cfg.Advertised)
	b, err := start(cfg, door)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting embedded Kafka in %s: %w", cfg.Dir, err), door.Close())
	}
	return b, nil
}

func start(cfg Config, door *door) (*Broker, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating folder: %w", err)
	}
	if err := restoreUncompacted(cfg.Dir); err != nil {
		return nil, err
	}
	if err := repair(cfg.Dir, cfg.Log); err != nil {
		return nil, err
	}
	// No SyncWrites: what is written survives the death of this process, as it does
	// with Kafka, which does not sync each batch either; and a sync a batch would
	// make it seven times slower. A loss of power may cost the last seconds.
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ClusterID("postrider-standalone"),
		kfake.DataDir(cfg.Dir),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return door, nil }),
		kfake.BrokerConfigs(brokerConfigs()),
		kfake.WithLogger(logger{cfg.Log}),
	)
	if err != nil {
		return nil, fmt.Errorf("loading: %w", err)
	}
	if err := compact(cfg.Dir, cluster, cfg.Log); err != nil {
		cluster.Close()
		return nil, err
	}
	door.open()
	return &Broker{cfg.Dir, cluster, door.Addr().String()}, nil
}

// Address is where clients connect, host:port.
func (b *Broker) Address() string { return b.address }

// Close stops serving and blocks until everything is on disk.
func (b *Broker) Close() { b.cluster.Close() }

// brokerConfigs are the settings in which kfake's defaults do not do.
func brokerConfigs() map[string]string {
	return map[string]string{
		// 100 years: never while it runs. kfake's compaction takes no notice of open
		// transactions, and drops what one of them will not replace after all.
		"log.cleaner.backoff.ms": strconv.FormatInt(100*365*24*3600*1000, 10),
		// A laptop may be off for longer than the default of seven days, and a group
		// without offsets does not know where it was.
		"offsets.retention.minutes": strconv.Itoa(10 * 365 * 24 * 60),
		// kfake applies the default of seven days to compacted topics too; the logs
		// have retentions of their own.
		"log.retention.ms": "-1",
		// As recommended for every broker.
		"transaction.max.timeout.ms": "60000",
	}
}

// door is a listener that lets nobody in before it is opened, so that nobody
// writes while the topics are compacted.
type door struct {
	net.Listener
	address address
	opened  chan struct{}
	closed  chan struct{}
	close   func() error // once
}

func newDoor(ln net.Listener, advertised string) *door {
	d := &door{Listener: ln, address: address(ln.Addr().String()), opened: make(chan struct{}), closed: make(chan struct{})}
	if advertised != "" {
		_, port, _ := net.SplitHostPort(ln.Addr().String()) // a TCP address has a port
		d.address = address(net.JoinHostPort(advertised, port))
	}
	d.close = sync.OnceValue(func() error {
		close(d.closed)
		return ln.Close() //nolint:wrapcheck // a listener's error is its own
	})
	return d
}

func (d *door) open() { close(d.opened) }

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	select {
	case <-d.opened:
		return d.Listener.Accept() //nolint:wrapcheck // a listener's error is its own
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener. It is what kfake advertises.
func (d *door) Addr() net.Addr { return d.address }

// Close implements net.Listener.
func (d *door) Close() error { return d.close() }

// address is a host:port, whose host may be a name.
type address string

// Network implements net.Addr.
func (address) Network() string { return "tcp" }

func (a address) String() string { return string(a) }

// logger passes kfake's warnings on.
type logger struct{ log *slog.Logger }

// Logf implements kfake.Logger.
func (l logger) Logf(level kfake.LogLevel, format string, values ...any) {
	slow := strings.HasPrefix(format, "txn: EndTxn slow") // over 5 ms: a matter of the disk, at every transaction
	switch {
	case level == kfake.LogLevelError:
		l.log.Error("embedded Kafka", "message", fmt.Sprintf(format, values...))
	case level == kfake.LogLevelWarn && !slow:
		l.log.Warn("embedded Kafka", "message", fmt.Sprintf(format, values...))
	default: // kfake has one line a request
	}
}
