package main

import (
	"context"
	"encoding/json"
	"errors"
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
messages that were lost, duplicated or reordered, and those that went with a node that
was killed. While the cluster is away or full it tries again and says why; what trying
again can't mend (a wrong client key or ticket, a type that nobody runs) ends it at once.

It exits with 0 when all is well, with 1 when messages were lost, bots were not playing
at the end or nobody could play, and with 64 when the command line is wrong. Ctrl-C ends
it with the same summary.

Against a cluster that asks for tickets it signs them itself, with the key in
--ticket-key-file, DIARKIS_TICKET_KEY_FILE or DIARKIS_TICKET_KEY.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.URL == "" {
				return &usageError{fmt.Errorf("--http is needed: the URL of an http node, such as http://127.0.0.1:7000")}
			}
			if err := setToNothing(cmd, "count", "rate", "size", "type"); err != nil {
				return err
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
	f.StringVar(&o.Type, "type", "UDP", "node `type` the bots ask for, as the nodes spell it: UDP, TCP, mixed (UDP and TCP), or one of your own")
	f.Float64Var(&o.Rate, "rate", 10, "messages a bot sends per second")
	f.IntVar(&o.Size, "size", 64, fmt.Sprintf("bytes per message, %d to %d", bot.SizeMin, bot.SizeMax))
	f.Var(lossFlag{&o.Loss}, "loss", "`percent` of datagrams to lose, each way, as a bad network does")
	f.DurationVar(&o.Duration, "duration", 30*time.Second, "how long all of it takes, connecting included; up to 10 s more for what is on its way (0: until Ctrl-C)")
	f.StringVar(&o.Prefix, "prefix", "", "`text` that starts the user ids, which must be in use nowhere else (default: bot- and random letters)")
	f.StringVar(&ticketKeyFile, "ticket-key-file", "", "sign tickets with the key in `file`: a secret, or a private key in PEM")
	f.BoolVar(&asJSON, "json", false, "print one JSON object at the end and nothing else")
	return cmd
}

// setToNothing refuses a flag that is given with the zero value, which the options would take
// for their default.
func setToNothing(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if v := cmd.Flag(name).Value.String(); cmd.Flags().Changed(name) && (v == "0" || v == "") {
			if v == "" {
				v = `""`
			}
			return &usageError{fmt.Errorf("--%s %s makes no sense: leave it out, or give it a value", name, v)}
		}
	}
	return nil
}

func runBots(ctx context.Context, cmd *cobra.Command, o bot.Options, asJSON bool) error {
	sum, err := bot.Run(ctx, o)
	if errors.Is(err, bot.ErrOptions) {
		return &usageError{err}
	}
	if asJSON {
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(sum); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(cmd.OutOrStdout(), sum)
	}
	if err == nil && sum.Failure() != "" {
		err = errors.New(sum.Failure())
	}
	if err != nil {
		return &lifecycle.Error{Code: lifecycle.ExitFailed, Err: err}
	}
	return nil
}
