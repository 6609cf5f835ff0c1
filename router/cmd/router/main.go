// Command router joins events with webhooks and writes deliveries.
package main

import (
	"context"
	"os"

	"github.com/postrider/postrider/router"
	"github.com/postrider/postrider/schemas/process"
)

func main() {
	var cfg router.Config
	os.Exit(process.Main("router", &cfg, func(ctx context.Context, p *process.Process) error {
		return router.Run(ctx, cfg, p)
	}))
}
