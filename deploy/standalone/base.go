package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/postrider/postrider/deploy/clickhouse"
	"github.com/postrider/postrider/deploy/standalone/broker"
	auditschema "github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/process"
)

// base is what the services stand on, as far as it is embedded.
type base struct {
	cfg *config
	log *slog.Logger
	// http and native are where ClickHouse listens; the same when it is started again.
	http, native string
	broker       *broker.Broker     // nil: another Kafka is used
	clickhouse   *clickhouse.Server // nil: another ClickHouse is used; changed by keepClickHouse alone
}

// startBase starts Kafka and ClickHouse side by side, and blocks until both answer and ClickHouse has its tables.
func startBase(ctx context.Context, cfg *config, kafkaListener net.Listener, log *slog.Logger) (*base, error) {
	b := &base{cfg: cfg, log: log, http: cfg.clickhouseHTTP, native: cfg.clickhouseNative}
	var errKafka, errClickHouse error
	var starting sync.WaitGroup
	if cfg.embeddedKafka() {
		starting.Go(func() { errKafka = b.startKafka(ctx, kafkaListener) })
	}
	if cfg.embeddedClickHouse() {
		starting.Go(func() {
			if errClickHouse = b.startClickHouse(ctx); errClickHouse == nil {
				errClickHouse = migrate(ctx, b.cfg.clickhouseConfig(b.native))
			}
		})
	}
	starting.Wait()
	if err := errors.Join(errKafka, errClickHouse); err != nil {
		b.stop(context.WithoutCancel(ctx))
		return nil, err
	}
	return b, nil
}

func (b *base) startKafka(ctx context.Context, ln net.Listener) error {
	hostname, err := os.Hostname()
	if err == nil {
		_, err = net.DefaultResolver.LookupHost(ctx, hostname)
	}
	if err != nil {
		hostname = "localhost" // a name that is not known would help nobody, and our own clients use it too
	}
	host, err := advertised(b.cfg.kafkaListen, hostname)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	b.broker, err = broker.Start(broker.Config{Dir: b.cfg.kafkaDir(), Listener: ln, Advertised: host, Log: b.log})
	return err //nolint:wrapcheck // says it all
}

func (b *base) startClickHouse(ctx context.Context) error {
	started, err := clickhouse.Start(ctx, clickhouse.Config{
		Dir: b.cfg.clickhouseDir(), HTTPListen: b.http, NativeListen: b.native,
		Database: auditschema.DefaultDatabase, Log: b.log,
	})
	if errors.Is(err, clickhouse.ErrPortTaken) {
		return b.namePorts(ctx, err)
	}
	if err != nil {
		return err //nolint:wrapcheck // says it all
	}
	b.clickhouse, b.http, b.native = started, started.HTTPAddr(), started.NativeAddr()
	return nil
}

// namePorts finds the flags of the ports that ClickHouse has found taken.
func (b *base) namePorts(ctx context.Context, err error) error {
	var taken []error
	for _, port := range [][2]string{{"clickhouse-http-listen", b.http}, {"clickhouse-native-listen", b.native}} {
		ln, problem := process.Listen(ctx, port[0], port[1])
		if problem == nil {
			problem = ln.Close()
		}
		taken = append(taken, problem)
	}
	if problems := errors.Join(taken...); problems != nil {
		return problems
	}
	return err // somebody has come and gone
}

func (b *base) kafkaAddress() string {
	if b.broker == nil {
		return ""
	}
	return b.broker.Address()
}

func (b *base) clickhouseAddress() string {
	if b.clickhouse == nil {
		return ""
	}
	return b.clickhouse.NativeAddr()
}

// keepClickHouse starts the embedded ClickHouse again if it ends, until ctx does.
// That it has ended, and what it said, the server logs itself.
func (b *base) keepClickHouse(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.clickhouse.Done():
		}
		persist(ctx, func(ctx context.Context) error {
			err := b.startClickHouse(ctx)
			if err != nil && ctx.Err() == nil {
				b.log.Error("starting ClickHouse again", "error", err)
			}
			return err
		})
	}
}

// migrateOther brings the tables of another ClickHouse up to date as soon as it can be reached.
func migrateOther(ctx context.Context, to auditschema.Config, tables *process.Dependency) error {
	persist(ctx, func(ctx context.Context) error {
		err := migrate(ctx, to)
		if err != nil {
			tables.Down(err)
			return err
		}
		tables.Up()
		return nil
	})
	<-ctx.Done()
	return nil
}

// stop ends ClickHouse, then Kafka. What they have acknowledged is on disk, so no error is one of the caller's.
func (b *base) stop(ctx context.Context) {
	if b.clickhouse != nil {
		if err := b.clickhouse.Stop(ctx); err != nil {
			b.log.Warn("stopping ClickHouse", "error", err)
		}
	}
	if b.broker != nil {
		started := time.Now()
		b.broker.Close()
		b.log.Debug("embedded Kafka is closed", "took", time.Since(started))
	}
}
