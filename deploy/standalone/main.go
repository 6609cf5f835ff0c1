// Command standalone is all of Postrider in one process, for a laptop or a first
// look: ingest, router and sender on an embedded Kafka (room broker) and a real
// ClickHouse as a child process. Everything it keeps is under one folder. What
// it does not have is Kafka's own durability over machines: production runs the
// three services on Kafka.
package main

import (
	"context"
	"os"

	"github.com/postrider/postrider/deploy/clickhouse"
	"github.com/postrider/postrider/schemas/process"
)

func main() {
	clickhouse.ChildMain()
	var cfg config
	os.Exit(process.Main("standalone", &cfg, func(ctx context.Context, p *process.Process) error {
		return run(ctx, &cfg, p)
	}))
}
