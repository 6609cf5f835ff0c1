package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/postrider/postrider/ingest"
	"github.com/postrider/postrider/router"
	"github.com/postrider/postrider/schemas"
	auditschema "github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/kafka"
	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender"
)

// retryDelay is between attempts to reach a Kafka or ClickHouse that is not ours.
const retryDelay = 2 * time.Second

// run starts what the services stand on, Kafka and ClickHouse side by side, then
// the services, and stops in reverse order when ctx ends.
func run(ctx context.Context, cfg *config, p *process.Process) (err error) {
	// Of the router, ingest and the sender, whose own come when they start.
	p.Health.Expect("table", "registry", "partitions")
	f, err := openFolder(cfg.data, cfg.adminKey)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	ports, err := listen(ctx, cfg)
	if err != nil {
		return err
	}
	base, err := startBase(ctx, cfg, ports.kafka, p.Log)
	if err != nil {
		return errors.Join(err, ports.rest.Close())
	}
	defer base.stop(context.WithoutCancel(ctx))

	services := cfg.services(f, base.kafkaAddress(), base.clickhouseAddress())
	services.ingest.Listener = ports.rest
	err = createTopics(ctx, cfg, services.ingest.Kafka, p.Health.Dependency("topics", process.Required))
	if err != nil || ctx.Err() != nil {
		return errors.Join(err, ports.rest.Close())
	}
	clickHouse := base.keepClickHouse
	if !cfg.embeddedClickHouse() {
		tables := p.Health.Dependency("tables", process.Degradable)
		clickHouse = func(ctx context.Context) error { return migrateOther(ctx, services.sender.Audit.ClickHouse, tables) }
	}
	shown := newBanner(cfg, f, base, ports.rest.Addr().String(), p.AdminAddress)
	return process.Run(ctx, //nolint:wrapcheck // names the stage
		process.Stage{Name: "ClickHouse", Run: clickHouse},
		process.Stage{Name: "sender", Run: func(ctx context.Context) error { return sender.Run(ctx, services.sender, p) }},
		process.Stage{Name: "router", Run: func(ctx context.Context) error { return router.Run(ctx, services.router, p) }},
		process.Stage{Name: "ingest", Run: func(ctx context.Context) error { return ingest.Run(ctx, services.ingest, p) }},
		process.Stage{Name: "banner", Run: func(ctx context.Context) error { return welcome(ctx, p.Log, shown) }},
	)
}

// ports are those that this process itself listens on; kafka is nil where none is embedded.
type ports struct {
	rest, kafka net.Listener
}

// listen takes the ports first, so that all that are taken are told at once.
func listen(ctx context.Context, cfg *config) (ports, error) {
	var taken ports
	var errRest, errKafka error
	taken.rest, errRest = process.Listen(ctx, "listen", cfg.listen)
	if cfg.embeddedKafka() {
		taken.kafka, errKafka = process.Listen(ctx, "kafka-listen", cfg.kafkaListen)
	}
	err := errors.Join(errRest, errKafka)
	if err == nil {
		return taken, nil
	}
	for _, ln := range []net.Listener{taken.rest, taken.kafka} {
		if ln != nil {
			err = errors.Join(err, ln.Close())
		}
	}
	return ports{}, err
}

// createTopics creates what is missing, and keeps trying while Kafka is away. It returns nil also when ctx ends.
func createTopics(ctx context.Context, cfg *config, to kafka.Config, topics *process.Dependency) error {
	replication := 0 // the brokers' default
	if cfg.embeddedKafka() {
		replication = 1
	}
	cl, err := to.NewClient("standalone")
	if err != nil {
		return err //nolint:wrapcheck // says it all
	}
	defer cl.Close()
	partitions := schemas.Partitions{Events: schemas.StandalonePartitions, Deliveries: schemas.StandalonePartitions}
	persist(ctx, func(ctx context.Context) error {
		if err := kafka.CreateTopics(ctx, cl, to.Topics(), partitions, replication); err != nil {
			topics.Down(err) // which says so
			return err       //nolint:wrapcheck // says it all
		}
		topics.Up()
		return nil
	})
	return nil
}

// migrate brings the tables up to date.
func migrate(ctx context.Context, to auditschema.Config) (err error) {
	conn, err := to.Open()
	if err != nil {
		return err //nolint:wrapcheck // says it all
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return auditschema.Migrate(ctx, conn, to.DatabaseName()) //nolint:wrapcheck // says it all
}

// persist does something until it succeeds or ctx ends.
func persist(ctx context.Context, do func(ctx context.Context) error) {
	tick := time.NewTicker(retryDelay)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*retryDelay)
		err := do(attempt)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// advertised is the host that Kafka clients are told to connect to: as it was
// given, for where every interface is listened on there is no address to tell.
func advertised(listen, hostname string) (string, error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("reading address %q: %w", listen, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return hostname, nil
	}
	return host, nil
}
