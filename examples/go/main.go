// Publishes one event of each kind: what a service in Go needs, against the local system and on MSK.
//
//	KAFKA_BROKERS=127.0.0.1:9092 go run . -campaign CAMPAIGN_ID -user USER_ID -user-reward USER_REWARD_ID
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl/aws_msk_iam_v2"
)

func main() {
	campaign := flag.String("campaign", "", "the campaign's id")
	user := flag.String("user", "", "the id of a user of the campaign")
	userReward := flag.String("user-reward", "", "the id of a user reward; no delivery is asked for where it is not given")
	flag.Parse()
	if *campaign == "" || *user == "" {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	writer, err := newWriter(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer writer.Close()

	events := []Event{
		NewEmailJob(EmailJobPayload{Type: "verification", CampaignID: *campaign, UserID: *user, Priority: 1}),
		NewPositionRecalcJob(PositionRecalcJobPayload{CampaignID: *campaign}),
	}
	if *userReward != "" {
		events = append(events, NewRewardDeliveryJob(RewardDeliveryJobPayload{UserRewardID: *userReward}))
	}
	if err := publish(ctx, writer, events); err != nil {
		log.Fatal(err)
	}
	for _, event := range events {
		fmt.Println(event.ID, event.Type)
	}
}

// newWriter reads KAFKA_BROKERS, KAFKA_JOB_TOPIC and KAFKA_AUTH (none, or iam for MSK).
func newWriter(ctx context.Context) (*kafka.Writer, error) {
	brokers := os.Getenv("KAFKA_BROKERS")
	if brokers == "" {
		return nil, errors.New("KAFKA_BROKERS is missing: comma-separated host:port")
	}
	writer := &kafka.Writer{
		Addr:     kafka.TCP(strings.Split(brokers, ",")...),
		Topic:    "job-events",
		Balancer: &kafka.Murmur2Balancer{},
		// Whatever returns without an error is in every in-sync replica.
		RequiredAcks: kafka.RequireAll,
		BatchTimeout: 10 * time.Millisecond,
	}
	if topic := os.Getenv("KAFKA_JOB_TOPIC"); topic != "" {
		writer.Topic = topic
	}
	switch auth := os.Getenv("KAFKA_AUTH"); auth {
	case "", "none":
	case "iam":
		// Credentials and region come from where AWS's SDK finds them: environment, profile, or the task's role.
		aws, err := config.LoadDefaultConfig(ctx)
		if err != nil {
			return nil, err
		}
		if aws.Region == "" {
			return nil, errors.New("AWS_REGION is missing: KAFKA_AUTH=iam needs the cluster's region")
		}
		writer.Transport = &kafka.Transport{
			TLS:  &tls.Config{MinVersion: tls.VersionTLS12},
			SASL: aws_msk_iam_v2.NewMechanism(aws),
		}
	default:
		return nil, fmt.Errorf("KAFKA_AUTH=%q: allowed is none or iam", auth)
	}
	return writer, nil
}

// publish returns when every event is acknowledged. Where it returns an error, some may have arrived: send the same
// events again, with the same ids, and each is done once.
func publish(ctx context.Context, writer *kafka.Writer, events []Event) error {
	messages := make([]kafka.Message, len(events))
	for number, event := range events {
		message, err := event.Message()
		if err != nil {
			return err
		}
		messages[number] = message
	}
	return writer.WriteMessages(ctx, messages...)
}
