// Command ingest serves REST: events in, webhooks and API keys kept.
package main

import (
	"context"
	"os"

	"github.com/postrider/postrider/ingest"
	"github.com/postrider/postrider/schemas/process"
)

func main() {
	var cfg ingest.Config
	os.Exit(process.Main("ingest", &cfg, func(ctx context.Context, p *process.Process) error {
		return ingest.Run(ctx, cfg, p)
	}))
}
