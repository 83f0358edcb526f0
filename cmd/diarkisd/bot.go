package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/bot"
	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/lifecycle"
)

func botCommand() *cobra.Command {
	var o bot.Options
	var asJSON bool
	var ticketKeyFile string
	cmd := &cobra.Command{
		Use:   "bot --http URL",
		Short: "Let players play on a cluster and check what they receive",
		Long: `bot plays against any cluster and counts, for every receiver, the reliable
messages that were lost, duplicated or reordered. It exits with 1 if there were any.

Against a cluster that asks for tickets it signs them itself, with the key in
--ticket-key-file, DIARKIS_TICKET_KEY_FILE or DIARKIS_TICKET_KEY.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.URL == "" {
				return &usageError{fmt.Errorf("--http is needed: the URL of an http node, such as http://127.0.0.1:7000")}
			}
			cfg, err := config.Load(config.Options{Role: config.RoleHTTP})
			if err != nil {
				return err
			}
			o.ClientKey = cfg.Env.ClientKey.Reveal()
			if o.Ticket, err = lifecycle.BotTickets(cfg, ticketKeyFile); err != nil {
				return err
			}
			if !asJSON {
				o.Status = func(line string) { fmt.Fprintln(cmd.OutOrStdout(), line) }
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return runBots(ctx, cmd, o, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.URL, "http", "", "`URL` of an http node")
	f.IntVar(&o.Count, "count", 4, "how many bots play")
	f.StringVar(&o.Type, "type", "UDP", "node type the bots ask for: UDP, TCP, mixed, or one of your own")
	f.Float64Var(&o.Rate, "rate", 10, "messages a bot sends per second")
	f.IntVar(&o.Size, "size", 64, "bytes per message")
	f.Var(lossFlag{&o.Loss}, "loss", "`percent` of datagrams to lose, each way, as a bad network does")
	f.DurationVar(&o.Duration, "duration", 30*time.Second, "how long they play (0: until Ctrl-C)")
	f.StringVar(&ticketKeyFile, "ticket-key-file", "", "sign tickets with the key in `file`: a secret, or a private key in PEM")
	f.BoolVar(&asJSON, "json", false, "print one JSON object at the end and nothing else")
	return cmd
}

func runBots(ctx context.Context, cmd *cobra.Command, o bot.Options, asJSON bool) error {
	sum, err := bot.Run(ctx, o)
	if err != nil {
		return &lifecycle.Error{Code: lifecycle.ExitFailed, Err: err}
	}
	if asJSON {
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(sum); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(cmd.OutOrStdout(), sum)
	}
	switch {
	case sum.Faulty():
		return &lifecycle.Error{Code: lifecycle.ExitFailed, Err: fmt.Errorf("%d reliable messages lost, %d duplicated, %d reordered", sum.Lost, sum.Duplicated, sum.Reordered)}
	case sum.Connected == 0:
		return &lifecycle.Error{Code: lifecycle.ExitFailed, Err: fmt.Errorf("no bot could connect through %s", o.URL)}
	}
	return nil
}
