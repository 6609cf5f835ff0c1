// Command sender attempts deliveries and writes the audit.
package main

import (
	"context"
	"os"

	"github.com/postrider/postrider/schemas/process"
	"github.com/postrider/postrider/sender"
)

func main() {
	var cfg sender.Config
	os.Exit(process.Main("sender", &cfg, func(ctx context.Context, p *process.Process) error {
		return sender.Run(ctx, cfg, p)
	}))
}
